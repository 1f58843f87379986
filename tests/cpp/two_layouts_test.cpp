// SPDX-License-Identifier: BSD-3-Clause
// One weight in two layouts: the bytes of the block, what reads which layout, what is refused, and
// which layout a call runs in.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "fake_kernels.h"
#include "gossamer/conv.h"
#include "gossamer/openmp.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::bytes_of;
using test::code_of;
using test::copy_bytes;
using test::fake_weight;
using test::fakes;
using test::Matrix;
using test::message_of;
using test::pack_matrix;
using test::unpack_values;

struct Case {
  const char* pattern;
  DType dtype;
  Layout first;
  Layout second;
};

const std::array<Case, 6> kCases{
    {{"unstructured:0.5", DType::kFloat32, Layout::kRowPairs64, Layout::kBitmask},
     {"unstructured:0.9", DType::kFloat32, Layout::kBitmask, Layout::kRowPairs128},
     {"unstructured:0.7", DType::kFloat32, Layout::kRowPairs64, Layout::kRowPairs128},
     {"2:4", DType::kFloat32, Layout::kRowPairs64, Layout::kNm24Pairs},
     {"block:2x4:0.5", DType::kBFloat16, Layout::kBsr, Layout::kBitmask},
     {"fanin:0.8", DType::kFloat32, Layout::kKcsr64, Layout::kFanIn}}};

Matrix matrix_of(const Case& c) {
  test::Random random(7);
  return test::random_sparse(random, c.dtype, Pattern::parse(c.pattern), 40, 132);
}

PackedWeight both_of(const Case& c) {
  const PackedWeight formed =
      pack_matrix(matrix_of(c), Pattern::parse(c.pattern), format_for(Pattern::parse(c.pattern)));
  return convert(formed, c.first, c.second);
}

/// The bytes of a weight from the arrays on: what does not speak of plans and second layouts.
std::vector<std::byte> arrays_of(const PackedView& weight) {
  return {weight.data() + sizeof(PackedHeader), weight.data() + weight.layout_bytes()};
}

TEST(TwoLayouts, AreEachWhatConvertToOneGives) {
  for (const Case& c : kCases) {
    const PackedWeight both = both_of(c);
    const PackedView view = both.view();
    EXPECT_EQ(view.layout(), c.first) << c.pattern;
    ASSERT_TRUE(view.second().has_value()) << c.pattern;
    const PackedView second = *view.second();
    EXPECT_EQ(second.layout(), c.second);
    EXPECT_FALSE(second.second().has_value());
    EXPECT_EQ(view.size_bytes(), view.layout_bytes() + second.size_bytes());
    EXPECT_EQ(both.size_bytes(), view.size_bytes());
    for (const PackedView& one : {view, second}) {
      const PackedWeight alone = convert(view, one.layout());
      EXPECT_EQ(alone.view().size_bytes(), one.layout_bytes()) << c.pattern;
      EXPECT_EQ(arrays_of(alone.view()), arrays_of(one)) << c.pattern;
      EXPECT_EQ(converted_size_bytes(view, one.layout()), one.layout_bytes()) << c.pattern;
      EXPECT_EQ(unpack_values(one), matrix_of(c)) << c.pattern;
    }
    EXPECT_NO_THROW(validate(both)) << c.pattern;
  }
}

// Groups and rows that keep fewer than the pattern says are filled in some layouts alone.
TEST(TwoLayouts, HoldTheSameWhateverTheyAreMadeFrom) {
  Matrix sparse = test::zeros(DType::kFloat32, 16, 64);
  for (int row = 0; row < 16; ++row) sparse.as<float>()[row * 64 + 4 * row] = 1.0f + row;
  struct Pair {
    const char* pattern;
    Layout from;
    Layout first;
    Layout second;
  };
  for (const Pair& p : {Pair{"2:4", Layout::kKcsr64, Layout::kNm24Pairs, Layout::kKcsr128},
                        Pair{"2:4", Layout::kBitmask, Layout::kNm, Layout::kKcsr64},
                        Pair{"2:4", Layout::kRowPairs64, Layout::kNm24Pairs, Layout::kBitmask},
                        Pair{"fanin:0.9", Layout::kKcsr64, Layout::kFanIn, Layout::kBitmask},
                        Pair{"block:4x4:0.5", Layout::kBitmask, Layout::kBsr, Layout::kKcsr64}}) {
    const PackedWeight one = pack_matrix(sparse, Pattern::parse(p.pattern), p.from);
    const PackedWeight both = convert(one, p.first, p.second);
    EXPECT_NO_THROW(validate(both)) << p.pattern << " from " << layout_name(p.from);
    EXPECT_EQ(both.view().layout(), p.first);
    EXPECT_EQ(both.view().second()->layout(), p.second);
    EXPECT_EQ(unpack_values(both), sparse);
  }
}

TEST(TwoLayouts, OneOfThemIsConvertedSlicedStackedAndSaved) {
  const Case& c = kCases[0];
  const PackedWeight both = both_of(c);
  const PackedWeight format = pack_matrix(matrix_of(c), Pattern::parse(c.pattern), c.second);
  EXPECT_EQ(bytes_of(convert(both, Layout::kBitmask)), bytes_of(format));
  const PackedWeight top = slice_rows(both, 0, 16);
  const PackedWeight rest = slice_rows(both, 16, 40);
  EXPECT_EQ(top.view().header().has_second, 0);
  const std::array<PackedView, 2> parts{top.view(), rest.view()};
  EXPECT_EQ(unpack_values(concat_rows(parts)), matrix_of(c));
  const std::array<PackedView, 2> doubled{both.view(), both.view()};
  EXPECT_EQ(concat_rows(doubled).view().out(), 80);
}

TEST(TwoLayouts, MustDifferAndHoldThePattern) {
  const PackedWeight one =
      pack_matrix(matrix_of(kCases[0]), Pattern::parse("unstructured:0.5"), Layout::kBitmask);
  EXPECT_NE(message_of([&] { convert(one, Layout::kBitmask, Layout::kBitmask); }).find("twice"),
            std::string::npos);
  EXPECT_EQ(code_of([&] { convert(one, Layout::kBitmask, Layout::kNm24Pairs); }),
            ErrorCode::kInvalidArgument);
}

TEST(TwoLayouts, TheRoomForTheSecondIsNotTakenForIt) {
  const Case& c = kCases[0];
  const PackedWeight format = pack_matrix(matrix_of(c), Pattern::parse(c.pattern), c.second);
  const PackedWeight room = convert_leaving_room(format, c.first, c.second);
  EXPECT_EQ(unpack_values(room), matrix_of(c));
  EXPECT_EQ(code_of([&] { room.view().second(); }), ErrorCode::kMalformedData);
  EXPECT_EQ(code_of([&] { validate(room); }), ErrorCode::kMalformedData);
  EXPECT_EQ(code_of([&] { fill_second(room.data(), room.size_bytes(), Layout::kKcsr64); }),
            ErrorCode::kInvalidArgument)
      << "there is room for another layout";
  fill_second(room.data(), room.size_bytes(), c.second);
  EXPECT_EQ(bytes_of(room), bytes_of(both_of(c)));
}

/// The code of opening and validating a block that `change` was made to.
ErrorCode code_after(const std::function<void(PackedHeader& first, PackedHeader& second)>& change) {
  const PackedWeight both = copy_bytes(bytes_of(both_of(kCases[0])));
  auto* const first = reinterpret_cast<PackedHeader*>(both.data());
  auto* const second = reinterpret_cast<PackedHeader*>(both.data() + both.view().layout_bytes());
  change(*first, *second);
  return code_of([&] { validate(both.view()); });
}

TEST(TwoLayouts, BytesThatAreNoSuchBlockAreRefused) {
  const ErrorCode bad = ErrorCode::kMalformedData;
  EXPECT_EQ(code_after([](PackedHeader& h, PackedHeader&) { h.has_second = 0; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h, PackedHeader&) { h.has_second = 2; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h, PackedHeader&) { h.version = 3; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h, PackedHeader& other) {
              h.version = other.version = 1;
              h.second_buckets = 0x80;  // it has seven buckets
            }),
            bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.has_second = 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.second_buckets = 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.magic = 0; }), bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.out -= 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.dtype = DType::kInt8; }), bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.transposed = 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) { h.sparsity = 0.4; }), bad);
  // Values that differ between the layouts: each is in order by itself.
  EXPECT_EQ(code_after([](PackedHeader&, PackedHeader& h) {
              auto* const values =
                  reinterpret_cast<float*>(reinterpret_cast<std::byte*>(&h) + h.arrays[1].offset);
              values[0] += 1.0f;
            }),
            bad);
  EXPECT_NO_THROW(validate(both_of(kCases[0])));
}

Plan plan_of(Layout first, Layout second, const std::array<const char*, kTokenBuckets>& kernels) {
  Plan plan;
  plan.sparse = true;
  plan.layout = first;
  plan.second = second;
  for (std::size_t i = 0; i < kernels.size(); ++i) plan.choices[i].kernel = kernels[i];
  return plan;
}

TEST(TwoLayouts, ACallRunsInTheLayoutOfItsBucket) {
  test::reset_fakes();
  PackedWeight both = convert(fake_weight(), Layout::kKcsr64, Layout::kBitmask);
  store_plan(both, plan_of(Layout::kKcsr64, Layout::kBitmask,
                           {"fake_bitmask", "fake_bitmask", "fake_kcsr64_fast", "fake_kcsr64_slow",
                            "fake_kcsr64_fast", "fake_kcsr64_fast", "dense", "fake_bitmask"}));
  EXPECT_EQ(both.view().header().second_buckets, 0x83);
  EXPECT_EQ(both.view().second()->header().plan, both.view().header().plan);
  const auto runs = [&](std::int64_t tokens) {
    const LinearKernel* row = choose_kernel(both, tokens, 1);
    return row == nullptr ? std::string("dense") : std::string(row->name);
  };
  EXPECT_EQ(runs(1), "fake_bitmask");
  EXPECT_EQ(runs(4), "fake_bitmask");
  EXPECT_EQ(runs(5), "fake_kcsr64_fast");
  EXPECT_EQ(runs(8), "fake_kcsr64_fast");
  EXPECT_EQ(runs(9), "fake_kcsr64_slow");
  EXPECT_EQ(runs(100), "fake_kcsr64_fast");
  EXPECT_EQ(runs(600), "dense");
  EXPECT_EQ(runs(4000), "fake_bitmask");
  fakes()[0].takes = fakes()[1].takes = fakes()[2].takes = test::constant(0.0);
  std::vector<float> x(static_cast<std::size_t>(100 * test::kFakeIn));
  std::vector<float> y(static_cast<std::size_t>(100 * test::kFakeOut));
  LinearArgs args{.weight = both.view(), .parallel = {}};
  args.x = x.data();
  args.x_stride = test::kFakeIn;
  args.y = y.data();
  args.y_stride = test::kFakeOut;
  for (const auto& [tokens, row] : {std::pair<std::int64_t, std::size_t>{1, 0}, {100, 2}}) {
    args.tokens = tokens;
    const int before = fakes()[row].calls;
    run_linear(args);
    EXPECT_EQ(fakes()[row].calls, before + 1) << tokens;
  }
}

/// The bytes as version 1 wrote them: seven buckets, 2 to 8 tokens in one.
void make_version_1(PackedHeader& header) {
  header.version = 1;
  std::copy(header.plan.begin() + 2, header.plan.end(), header.plan.begin() + 1);
  header.plan.back() = 0;
  header.second_buckets =
      static_cast<std::uint8_t>((header.second_buckets & 1) | (header.second_buckets >> 2 << 1));
}

TEST(TwoLayouts, APlanOfVersion1IsReadAsItWasMeant) {
  test::reset_fakes();
  PackedWeight both = convert(fake_weight(), Layout::kKcsr64, Layout::kBitmask);
  store_plan(both, plan_of(Layout::kKcsr64, Layout::kBitmask,
                           {"fake_kcsr64_slow", "fake_bitmask", "fake_bitmask", "fake_kcsr64_fast",
                            "fake_kcsr64_slow", "fake_kcsr64_fast", "dense", "fake_bitmask"}));
  auto* const first = reinterpret_cast<PackedHeader*>(both.data());
  const std::int64_t begin = both.view().layout_bytes();
  make_version_1(*first);
  make_version_1(*reinterpret_cast<PackedHeader*>(both.data() + begin));
  EXPECT_EQ(first->second_buckets, 0x42);
  EXPECT_NO_THROW(validate(both));
  const auto runs = [&](std::int64_t tokens) {
    const LinearKernel* row = choose_kernel(both, tokens, 1);
    return row == nullptr ? std::string("dense") : std::string(row->name);
  };
  const auto check = [&] {
    EXPECT_EQ(runs(1), "fake_kcsr64_slow");
    for (const std::int64_t tokens : {2, 4, 5, 8}) EXPECT_EQ(runs(tokens), "fake_bitmask");
    EXPECT_EQ(runs(32), "fake_kcsr64_fast");
    EXPECT_EQ(runs(128), "fake_kcsr64_slow");
    EXPECT_EQ(runs(512), "fake_kcsr64_fast");
    EXPECT_EQ(runs(2048), "dense");
    EXPECT_EQ(runs(2049), "fake_bitmask");
  };
  check();
  const PackedHeader old = *first;
  first->set_plan(old);  // what a new header takes over
  EXPECT_EQ(first->version, PackedHeader::kVersion);
  EXPECT_EQ(first->second_buckets, 0x86);
  check();
}

TEST(TwoLayouts, APlanOfTwoIsNotStoredInAWeightOfOneNorTheOtherWayRound) {
  test::reset_fakes();
  const Plan two =
      plan_of(Layout::kKcsr64, Layout::kBitmask,
              {"dense", "dense", "dense", "dense", "dense", "dense", "dense", "fake_bitmask"});
  Plan one = two;
  one.second.reset();
  PackedWeight alone = convert(fake_weight(), Layout::kKcsr64);
  PackedWeight both = convert(fake_weight(), Layout::kKcsr64, Layout::kBitmask);
  EXPECT_EQ(code_of([&] { store_plan(alone, two); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { store_plan(both, one); }), ErrorCode::kInvalidArgument);
  EXPECT_NO_THROW(store_plan(alone, one));
  EXPECT_NO_THROW(store_plan(both, two));
}

// What runs is right in either layout, whichever a bucket was given: real rows against the
// reference.
TEST(TwoLayouts, BothComputeTheProduct) {
  const Matrix w = matrix_of(kCases[0]);
  const PackedWeight format = pack_matrix(w, Pattern::parse("unstructured:0.5"), Layout::kBitmask);
  PackedWeight both = convert(format, Layout::kKcsr128, Layout::kBitmask);
  store_plan(both, plan_of(Layout::kKcsr128, Layout::kBitmask,
                           {"generic_linear_bitmask_f32", "generic_spmm_kcsr128_f32",
                            "generic_linear_bitmask_f32", "generic_linear_bitmask_f32",
                            "generic_spmm_kcsr128_f32", "dense", "dense", "dense"}));
  EXPECT_EQ(both.view().header().second_buckets, 0x0d);
  test::Random random(3);
  for (const std::int64_t tokens : {1, 3, 5, 20, 70}) {
    const Matrix x = test::random_matrix(random, DType::kFloat32, tokens, 132);
    Matrix y = test::zeros(DType::kFloat32, tokens, 40);
    Matrix expected = test::zeros(DType::kFloat32, tokens, 40);
    LinearArgs args{.weight = both.view(), .tokens = tokens, .parallel = openmp_parallel_for()};
    args.x = x.bytes.data();
    args.x_stride = 132;
    args.y_stride = 40;
    args.y = y.bytes.data();
    run_linear(args);
    args.y = expected.bytes.data();
    args.weight = format.view();
    reference_linear(args);
    const auto* got = y.as<float>();
    const auto* want = expected.as<float>();
    for (std::int64_t i = 0; i < tokens * 40; ++i) {
      // At most 132 products of normal numbers, each rounded once more.
      ASSERT_NEAR(got[i], want[i], 132 * 132 * 0x1p-24 * 4) << tokens << " tokens, " << i;
    }
  }
}

}  // namespace
}  // namespace gossamer
