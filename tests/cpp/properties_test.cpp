// SPDX-License-Identifier: BSD-3-Clause
// What holds for every weight, checked on random ones.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

#include "testing.h"

namespace gossamer {
namespace {

using test::bytes_of;
using test::Matrix;

/// Weights of more elements than this are not unpacked: random ones have at most 270 000.
constexpr std::int64_t kMostElements = 1 << 22;

/// A weight together with a pattern that it satisfies.
struct Case {
  Pattern pattern;
  DType dtype = DType::kFloat32;
  Matrix values;
  Matrix mask;
};

Pattern random_pattern() {
  const double sparsity = *rc::gen::inRange(0, 101) / 100.0;
  switch (*rc::gen::inRange(0, 5)) {
    case 0: {
      const int m = 1 << *rc::gen::inRange(0, 7);
      return Pattern::nm(*rc::gen::inRange(1, m + 1), m);
    }
    case 1:
      return Pattern::block(*rc::gen::inRange(1, 9), *rc::gen::inRange(1, 9), sparsity);
    case 2:
      return Pattern::vnm(*rc::gen::inRange(1, 9), *rc::gen::inRange(1, 5),
                          *rc::gen::inRange(4, 17));
    case 3:
      return Pattern::fan_in(sparsity);
    default:
      return Pattern::unstructured(sparsity);
  }
}

/// Sizes that are often 0, 1, odd or prime, and past the widest K block now and then.
std::int64_t random_size() {
  return *rc::gen::weightedOneOf<std::int64_t>(
      {{6, rc::gen::inRange<std::int64_t>(0, 40)},
       {1, rc::gen::element<std::int64_t>(0, 1, 63, 64, 65, 127, 129, 257, 300)}});
}

Case random_case() {
  Case c;
  c.pattern = random_pattern();
  c.dtype = *rc::gen::elementOf(test::weight_dtypes());
  test::Random random(*rc::gen::arbitrary<std::uint64_t>());
  const std::int64_t rows = random_size();
  const std::int64_t cols = random_size();
  const std::int64_t batch = *rc::gen::inRange(1, 4);
  c.values = test::random_matrix(random, c.dtype, rows, cols, batch);
  c.mask = test::random_mask(random, c.pattern, rows, cols, batch);
  test::apply_mask(c.values, c.mask);
  return c;
}

Layout random_layout(const Pattern& pattern) {
  std::vector<Layout> layouts = test::all_layouts();
  std::erase_if(layouts, [&](Layout layout) { return !test::layout_holds(layout, pattern); });
  return *rc::gen::elementOf(layouts);
}

PackedWeight pack_case(const Case& c, Layout layout) {
  const ConstMatrixView mask = c.mask.const_view();
  return pack(c.values.const_view(), &mask, c.pattern, layout);
}

TEST(PropertyTest, UnpackUndoesPack) {
  EXPECT_TRUE(rc::check([] {
    const Case c = random_case();
    const Layout layout = random_layout(c.pattern);
    const PackedWeight packed = pack_case(c, layout);
    validate(packed);
    RC_ASSERT(test::unpack_values(packed) == c.values);
    RC_ASSERT(test::unpack_mask(packed) == c.mask);
    RC_ASSERT(bytes_of(pack_case(c, layout)) == bytes_of(packed));
    RC_ASSERT(test::size_is_foretold(packed));
  }));
}

TEST(PropertyTest, ConvertKeepsValuesAndMaskAndComesBack) {
  EXPECT_TRUE(rc::check([] {
    const Case c = random_case();
    const Layout from = random_layout(c.pattern);
    const Layout to = random_layout(c.pattern);
    const PackedWeight packed = pack_case(c, from);
    const PackedWeight converted = convert(packed, to);
    validate(converted);
    RC_ASSERT(converted.view().layout() == to);
    RC_ASSERT(test::unpack_values(converted) == c.values);
    RC_ASSERT(test::unpack_mask(converted) == test::unpack_mask(packed));
    RC_ASSERT(bytes_of(convert(converted, from)) == bytes_of(packed));
    RC_ASSERT(bytes_of(converted) == bytes_of(pack_case(c, to)));
  }));
}

TEST(PropertyTest, SlicingCommutesWithPackingAndStackingUndoesIt) {
  EXPECT_TRUE(rc::check([] {
    Case c = random_case();
    const Layout layout = random_layout(c.pattern);
    const PackedWeight packed = pack_case(c, layout);
    const std::int64_t unit = c.pattern.kind == Pattern::Kind::kBlock ? c.pattern.block_rows
                              : c.pattern.kind == Pattern::Kind::kVnm ? c.pattern.v
                                                                      : 1;
    const std::int64_t rows = c.values.rows;
    const std::int64_t cut =
        std::min(rows, *rc::gen::inRange<std::int64_t>(0, rows / unit + 1) * unit);
    const std::vector<PackedWeight> parts{slice_rows(packed, 0, cut),
                                          slice_rows(packed, cut, rows)};
    for (const PackedWeight& part : parts) validate(part);
    const std::vector<PackedView> views{parts[0], parts[1]};
    if (cut % unit == 0) RC_ASSERT(bytes_of(concat_rows(views)) == bytes_of(packed));

    // The first part is what packing the first rows gives, told the same pattern.
    Case top = c;
    top.values = test::zeros(c.dtype, cut, c.values.cols, c.values.batch);
    top.mask = test::zeros(DType::kBool, cut, c.values.cols, c.values.batch);
    const auto bytes = dtype_bytes(c.dtype);
    for (std::int64_t b = 0; b < c.values.batch; ++b) {
      const std::int64_t n = cut * c.values.cols;
      const std::int64_t whole = rows * c.values.cols;
      std::copy_n(c.values.bytes.begin() + b * whole * bytes, n * bytes,
                  top.values.bytes.begin() + b * n * bytes);
      std::copy_n(c.mask.bytes.begin() + b * whole, n, top.mask.bytes.begin() + b * n);
    }
    // A fraction holds for the whole, not for every part.
    if (find_violation(top.mask.const_view(), c.pattern)) return;
    RC_ASSERT(bytes_of(pack_case(top, layout)) == bytes_of(parts[0]));
  }));
}

TEST(PropertyTest, FormatArraysRebuildTheWeight) {
  EXPECT_TRUE(rc::check([] {
    const Case c = random_case();
    const PackedWeight packed = pack_case(c, format_for(c.pattern));
    const PackedView view = packed;
    const FormatInfo info{view.layout(), c.dtype,       c.pattern, c.values.batch,
                          c.values.rows, c.values.cols, false};
    const std::vector<PackedArray> arrays = format_arrays(view);
    RC_ASSERT(bytes_of(from_format_arrays(info, arrays)) == bytes_of(packed));
  }));
}

TEST(PropertyTest, PackAcceptsExactlyWhatFindViolationAccepts) {
  EXPECT_TRUE(rc::check([] {
    Case c = random_case();
    // A few more non-zeros than the pattern may allow.
    for (int extra = *rc::gen::inRange(0, 4); extra > 0 && c.values.size() > 0; --extra) {
      const auto index = *rc::gen::inRange<std::int64_t>(0, c.values.size());
      test::set_element(c.values, index, 1.0);
    }
    const auto violation = find_violation(c.values.const_view(), c.pattern);
    const Layout layout = random_layout(c.pattern);
    try {
      const PackedWeight packed = test::pack_matrix(c.values, c.pattern, layout);
      RC_ASSERT(!violation);
      RC_ASSERT(test::unpack_values(packed) == c.values);
    } catch (const Error& error) {
      RC_ASSERT(error.code() == ErrorCode::kPatternViolation);
      RC_ASSERT(violation.has_value());
      RC_ASSERT(std::string(error.what()).find(violation->message) != std::string::npos);
    }
  }));
}

/// N:M by its definition, element by element.
TEST(PropertyTest, FindViolationIsTheDefinitionOfNm) {
  EXPECT_TRUE(rc::check([] {
    const int m = 1 << *rc::gen::inRange(0, 5);
    const Pattern pattern = Pattern::nm(*rc::gen::inRange(1, m + 1), m);
    const std::int64_t rows = *rc::gen::inRange<std::int64_t>(0, 6);
    const std::int64_t cols = *rc::gen::inRange<std::int64_t>(0, 20);
    Matrix mask = test::zeros(DType::kBool, rows, cols);
    for (std::byte& b : mask.bytes) b = std::byte(*rc::gen::inRange(0, 4) == 0 ? 1 : 0);
    bool holds = true;
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const std::int64_t begin = i % cols / m * m;
      std::int64_t kept = 0;
      for (std::int64_t k = begin; k < std::min(begin + m, cols); ++k) {
        kept += mask.as<std::uint8_t>()[i / cols * cols + k];
      }
      holds = holds && kept <= pattern.n;
    }
    RC_ASSERT(holds == !find_violation(mask.const_view(), pattern).has_value());
  }));
}

TEST(PropertyTest, MasksHaveExactCounts) {
  EXPECT_TRUE(rc::check([] {
    const Case c = random_case();
    RC_ASSERT(!find_violation(c.mask.const_view(), c.pattern).has_value());
    const std::int64_t kept = count_nonzeros(c.mask.const_view());
    const std::int64_t rows = c.values.rows * c.values.batch;
    const std::int64_t cols = c.values.cols;
    if (c.pattern.kind == Pattern::Kind::kUnstructured) {
      RC_ASSERT(kept == rows * cols - dropped_count(c.pattern.sparsity, rows * cols));
    } else if (c.pattern.kind == Pattern::Kind::kFanIn) {
      RC_ASSERT(kept == rows * (cols - dropped_count(c.pattern.sparsity, cols)));
    } else if (c.pattern.kind == Pattern::Kind::kNm) {
      const std::int64_t rest = std::min<std::int64_t>(cols % c.pattern.m, c.pattern.n);
      RC_ASSERT(kept == rows * (cols / c.pattern.m * c.pattern.n + rest));
    }
  }));
}

/// Changed bytes are refused or harmless: then everything that reads them stays inside (which the
/// sanitizers watch) and says the same twice.
TEST(PropertyTest, ChangedBytesAreRefusedOrHarmless) {
  int refused = 0;
  int passed = 0;
  const bool ok = rc::check([&] {
    const Case c = random_case();
    std::vector<std::byte> bytes = bytes_of(pack_case(c, random_layout(c.pattern)));
    const auto size = static_cast<std::int64_t>(bytes.size());
    for (int flips = *rc::gen::inRange(1, 4); flips > 0; --flips) {
      // Half of them in the header.
      const auto end = *rc::gen::element<std::int64_t>(256, size);
      const auto at = static_cast<std::size_t>(*rc::gen::inRange<std::int64_t>(0, end));
      bytes[at] ^= std::byte(1 << *rc::gen::inRange(0, 8));
    }
    const PackedWeight changed = test::copy_bytes(bytes);
    try {
      validate(changed);
    } catch (const Error& error) {
      RC_ASSERT(error.code() == ErrorCode::kMalformedData);
      ++refused;
      return;
    }
    ++passed;
    const PackedView view = changed.view();
    // A few blocks of very many columns are a weight too, and one that no memory holds unpacked.
    if (view.batch() > kMostElements / std::max<std::int64_t>(1, view.out()) ||
        view.batch() * view.out() > kMostElements / std::max<std::int64_t>(1, view.in())) {
      return;
    }
    const Matrix values = test::unpack_values(changed);
    const Matrix mask = test::unpack_mask(changed);
    try {
      const PackedWeight general = convert(changed, Layout::kBitmask);
      validate(general);
      RC_ASSERT(test::unpack_values(general).bytes == values.bytes);
      RC_ASSERT(test::unpack_mask(general) == mask);
    } catch (const Error& error) {
      RC_ASSERT(error.code() == ErrorCode::kPatternViolation);
    }
  });
  EXPECT_TRUE(ok);
  EXPECT_GT(refused, 0);
  EXPECT_GT(passed, 0);
}

/// Text made of the grammar's own pieces: either it is refused, or it reads back from its own text.
TEST(PropertyTest, PatternTextIsRefusedOrReadsBack) {
  EXPECT_TRUE(rc::check([] {
    const auto pieces = *rc::gen::container<std::vector<std::string>>(
        rc::gen::element<std::string>("unstructured", "block", "vnm", "fanin", ":", "x", "2", "4",
                                      "8", "0", "64", "0.5", ".", "-", "1e-1", "nan", " "));
    std::string text;
    for (const std::string& piece : pieces) text += piece;
    try {
      const Pattern pattern = Pattern::parse(text);
      RC_ASSERT(Pattern::parse(pattern.to_string()) == pattern);
    } catch (const Error& error) {
      RC_ASSERT(error.code() == ErrorCode::kInvalidArgument);
    }
  }));
}

}  // namespace
}  // namespace gossamer
