// SPDX-License-Identifier: BSD-3-Clause
// The layout of row pairs of fours: its bytes, what it holds, what is refused.
#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "gossamer/packed_weight.h"
#include "plan/memory.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::array_of;
using test::bytes_of;
using test::code_of;
using test::Matrix;
using test::pack_matrix;
using test::unpack_mask;
using test::unpack_values;

using Bytes = std::vector<std::uint8_t>;
using Int8s = std::vector<std::int8_t>;
using Ints = std::vector<std::int32_t>;
using Longs = std::vector<std::int64_t>;

constexpr Layout kLayout = Layout::kRowQuads512;
const Pattern kAny = Pattern::parse("unstructured");

/// Three rows of 515 inputs, so that the second block is a four of three. In the first block rows 0
/// and 2 keep three fours each and share two, row 1 stays alone; in the second only row 1 keeps
/// one.
Matrix small() {
  Matrix w = test::zeros(DType::kInt8, 3, 515);
  auto* data = w.as<std::int8_t>();
  const auto put = [&](int row, int input, int value) {
    data[row * 515 + input] = static_cast<std::int8_t>(value);
  };
  put(0, 1, 1);
  put(0, 2, 2);
  put(0, 40, 3);
  put(0, 80, 4);
  put(1, 511, 5);
  put(1, 514, -6);
  put(2, 3, 7);
  put(2, 43, -8);
  put(2, 120, 9);
  return w;
}

TEST(RowQuadsTest, SharedFoursAreStoredOnce) {
  const PackedWeight packed = pack_matrix(small(), kAny, kLayout);
  EXPECT_EQ(array_of<std::int8_t>(packed, 0),
            (Int8s{0, 1, 2, 0, 0, 0, 0, 7, 3, 0, 0, 0, 0, 0, 0,  -8,    // fours 0 and 10, both rows
                   4, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 5, 0, 0, -6, 0}));  // 20 | 30, row 1 twice
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), (Bytes{0, 10, 20, 30, 127, 0}));
  // Row 1 keeps one four of the first block, the others three; of the second rows 0 and 2 nothing.
  EXPECT_EQ(array_of<std::uint8_t>(packed, 2), (Bytes{0, 2, 1, 0, 2, 1,  //
                                                      2, 1, 1, 0, 0, 1}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 3), (Bytes{0x86, 0x81, 1, 1, 8, 4}));
  EXPECT_EQ(array_of<std::int64_t>(packed, 4), (Longs{0, 0, 1, 7, 5, 1}));
  EXPECT_EQ(array_of<std::int32_t>(packed, 5), (Ints{1280, -128, 1024}));
  EXPECT_EQ(packed.view().kept(), 9);
  EXPECT_EQ(unpack_values(packed), small());
}

TEST(RowQuadsTest, AKeptZeroStaysKept) {
  test::Random random(1);
  const Matrix values = test::zeros(DType::kInt8, 300, 530, 2);
  const Matrix mask = test::random_mask(random, Pattern::unstructured(0.7), 300, 530, 2);
  const ConstMatrixView mask_view = mask.const_view();
  const PackedWeight packed = pack(values.const_view(), &mask_view, kAny, kLayout);
  validate(packed);
  EXPECT_EQ(unpack_mask(packed), mask);
  EXPECT_EQ(unpack_mask(convert(packed, Layout::kBitmask)), mask);
}

TEST(RowQuadsTest, HoldsPanelsBatchesAndEveryDtype) {
  test::Random random(2);
  for (const DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
    for (const double sparsity : {0.0, 0.5, 0.95, 1.0}) {
      const Matrix w =
          test::random_sparse(random, dtype, Pattern::unstructured(sparsity), 257, 1030, 2);
      const PackedWeight packed = pack_matrix(w, kAny, kLayout);
      validate(packed);
      EXPECT_EQ(unpack_values(packed), w);
      const PackedWeight format = pack_matrix(w, kAny, Layout::kBitmask);
      EXPECT_EQ(bytes_of(convert(packed, Layout::kBitmask)), bytes_of(format));
      EXPECT_EQ(bytes_of(convert(format, kLayout)), bytes_of(packed));
    }
  }
}

TEST(RowQuadsTest, HoldsBlocksOfFoursInLessThanTheirFormat) {
  test::Random random(3);
  for (const std::int64_t in : {512, 514}) {
    const Pattern pattern = Pattern::parse("block:1x4:0.9");
    const Matrix w = test::random_sparse(random, DType::kInt8, pattern, 512, in);
    const PackedWeight packed = pack_matrix(w, pattern, kLayout);
    const PackedWeight format = pack_matrix(w, pattern, Layout::kBsr);
    EXPECT_LT(packed.size_bytes(), format.size_bytes()) << in;
    EXPECT_TRUE(test::size_is_foretold(packed)) << in;
    EXPECT_EQ(bytes_of(convert(packed, Layout::kBsr)), bytes_of(format)) << in;
  }
}

/// The code that validate() throws after one array's element was changed.
template <typename T>
ErrorCode code_after(int array, std::size_t index, T value) {
  const PackedWeight packed = pack_matrix(small(), kAny, kLayout);
  EXPECT_NO_THROW(validate(packed));
  return test::code_after_change(packed, array, index, value);
}

TEST(RowQuadsTest, ValidateRefusesWhatAKernelCannotRead) {
  const auto bad = ErrorCode::kMalformedData;
  using U8 = std::uint8_t;
  EXPECT_EQ(code_after(0, 0, std::int8_t{1}), bad);  // a value that is not kept
  EXPECT_EQ(code_after(0, 1, std::int8_t{2}), bad);  // a sum of values
  EXPECT_EQ(code_after(1, 5, U8{1}), bad);           // a column past the matrix
  EXPECT_EQ(code_after(1, 1, U8{0}), bad);           // one that comes twice
  EXPECT_EQ(code_after(2, 0, U8{2}), bad);           // a row that comes twice
  EXPECT_EQ(code_after(2, 6, U8{4}), bad);           // a count
  EXPECT_EQ(code_after(3, 0, U8{0x06}), bad);        // the second row of a pair keeps nothing
  EXPECT_EQ(code_after(3, 0, U8{0x80}), bad);        // the first
  EXPECT_EQ(code_after(3, 2, U8{0x11}), bad);        // a second row where there is none
  EXPECT_EQ(code_after(3, 5, U8{0x0c}), bad);        // past the edge
  EXPECT_EQ(code_after(3, 4, U8{0x0a}), bad);        // more kept than the header says
  EXPECT_EQ(code_after(4, 0, std::int64_t{1}), bad);
  EXPECT_EQ(code_after(4, 5, std::int64_t{2}), bad);
  EXPECT_EQ(code_after(5, 1, std::int32_t{0}), bad);
}

TEST(RowQuadsTest, OpenRefusesSizesThatCannotBe) {
  for (const int array : {0, 1}) {
    for (const std::int64_t bytes : {-4, -1, 0, 4, 7, 44, 1 << 30}) {
      const PackedWeight packed = pack_matrix(small(), kAny, kLayout);
      PackedHeader header;
      std::memcpy(&header, packed.data(), sizeof(header));
      header.arrays[static_cast<std::size_t>(array)].bytes = bytes;
      std::memcpy(packed.data(), &header, sizeof(header));
      EXPECT_EQ(code_of([&] { packed.view(); }), ErrorCode::kMalformedData)
          << array << ": " << bytes;
    }
  }
}

// memory="low" and plans of two layouts admit what is hardly larger than the format.
TEST(RowQuadsTest, AreSmallWhereWholeFoursAreKept) {
  test::Random random(12);
  for (const auto& [text, is_small] :
       {std::pair{"block:1x4:0.8", true}, {"unstructured:0.8", false}}) {
    const Pattern pattern = Pattern::parse(text);
    const PackedWeight format =
        pack_matrix(test::random_sparse(random, DType::kInt8, pattern, 512, 1024), pattern,
                    format_for(pattern));
    const std::int64_t bytes = convert(format, kLayout).size_bytes();
    EXPECT_EQ(static_cast<double>(bytes) <= 1.15 * static_cast<double>(format.size_bytes()),
              is_small);
    EXPECT_EQ(converted_size_bytes(format, kLayout), bytes) << text;
    EXPECT_GE(plan::layout_bytes(format, kLayout), bytes) << text;
    plan::LayoutSizes sizes(format);
    EXPECT_EQ(sizes.is_small(kLayout), is_small) << text;
    EXPECT_EQ(sizes.is_small(bytes), is_small) << text;
  }
  const Pattern any = Pattern::parse("unstructured:0.8");
  const PackedWeight floats =
      pack_matrix(test::random_sparse(random, DType::kFloat32, any, 16, 64), any, Layout::kBitmask);
  EXPECT_FALSE(plan::LayoutSizes(floats).is_small(kLayout)) << "it holds int8 alone";
}

}  // namespace
}  // namespace gossamer
