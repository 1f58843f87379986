// SPDX-License-Identifier: BSD-3-Clause
// The layouts of row pairs: their bytes, what they hold, what is refused.
#include <gtest/gtest.h>

#include <cstring>

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

using Floats = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;
using Longs = std::vector<std::int64_t>;

const Pattern kAny = Pattern::parse("unstructured");

/// Three rows of 70 inputs, so that the second block has six. In the first block rows 0 and 2 keep
/// equally many inputs and share two, row 1 stays alone; in the second all three do.
Matrix small() {
  Matrix w = test::zeros(DType::kFloat32, 3, 70);
  float* data = w.as<float>();
  data[3] = 1;
  data[10] = 2;
  data[20] = 3;
  data[64] = 4;
  data[70 + 5] = 5;
  data[70 + 64] = 6;
  data[70 + 69] = 7;
  data[140 + 3] = 8;
  data[140 + 10] = 9;
  data[140 + 30] = 10;
  return w;
}

TEST(RowPairsTest, SharedColumnsAreStoredOnce) {
  const PackedWeight packed = pack_matrix(small(), kAny, Layout::kRowPairs64);
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 8, 2, 9, 3, 10, 5, 4, 6, 7}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), (Bytes{3, 10, 20, 30, 5, 0, 0, 5}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 2), (Bytes{0, 2, 1, 2, 0, 1}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 3), (Bytes{2, 1, 1, 0, 1, 2}));
  EXPECT_EQ(array_of<std::int64_t>(packed, 4), (Longs{0, 0, 1, 7, 5, 0}));
  EXPECT_EQ(packed.view().kept(), 10);
  EXPECT_EQ(unpack_values(packed), small());
}

TEST(RowPairsTest, AnOddSharedColumnIsEachRowsOwn) {
  const Matrix w = test::matrix_f32(2, 4, {1, 2, 3, 0, 4, 5, 6, 0});
  const PackedWeight packed = pack_matrix(w, kAny, Layout::kRowPairs128);
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), (Bytes{0, 1, 2, 2}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 3), (Bytes{2, 1}));
  EXPECT_EQ(unpack_values(packed), w);
}

TEST(RowPairsTest, EqualCountsLieBehindEachOther) {
  test::Random random(1);
  const Matrix w =
      test::random_sparse(random, DType::kFloat32, Pattern::unstructured(0.8), 256, 64);
  const PackedWeight packed = pack_matrix(w, kAny, Layout::kRowPairs64);
  const Bytes counts = array_of<std::uint8_t>(packed, 3);
  const std::int64_t pairs = array_of<std::int64_t>(packed, 4)[2];
  EXPECT_GT(pairs, 110);  // of 128: one row of each of some twenty counts may stay alone
  std::pair<int, int> before{0, 0};
  for (std::size_t i = 0; i < static_cast<std::size_t>(2 * pairs); i += 2) {
    const std::pair<int, int> kept_and_shared{counts[i] + counts[i + 1], counts[i]};
    EXPECT_GE(kept_and_shared, before) << i;
    before = kept_and_shared;
  }
}

TEST(RowPairsTest, HoldsPanelsBatchesAndEveryDtype) {
  test::Random random(2);
  for (const Layout layout : {Layout::kRowPairs64, Layout::kRowPairs128}) {
    for (const DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
      for (const double sparsity : {0.0, 0.5, 0.95, 1.0}) {
        const Matrix w =
            test::random_sparse(random, dtype, Pattern::unstructured(sparsity), 513, 130, 2);
        const PackedWeight packed = pack_matrix(w, kAny, layout);
        validate(packed);
        EXPECT_EQ(unpack_values(packed), w);
        const PackedWeight format = pack_matrix(w, kAny, Layout::kBitmask);
        EXPECT_EQ(bytes_of(convert(packed, Layout::kBitmask)), bytes_of(format));
        EXPECT_EQ(bytes_of(convert(format, layout)), bytes_of(packed));
      }
    }
  }
}

TEST(RowPairsTest, TakesLittleMoreThanItsFormat) {
  test::Random random(3);
  for (const double sparsity : {0.3, 0.5, 0.7, 0.9, 0.95}) {
    const Pattern pattern = Pattern::unstructured(sparsity);
    const Matrix w = test::random_sparse(random, DType::kFloat32, pattern, 512, 512);
    const auto bytes = [&](Layout layout) {
      return static_cast<double>(pack_matrix(w, pattern, layout).size_bytes());
    };
    const double format = bytes(Layout::kBitmask);
    EXPECT_LT(bytes(Layout::kRowPairs64), 1.15 * format) << sparsity;
    EXPECT_LT(bytes(Layout::kRowPairs128), 1.15 * format) << sparsity;
    EXPECT_TRUE(test::size_is_foretold(pack_matrix(w, pattern, Layout::kRowPairs64)));
  }
}

/// The code that validate() throws after one array's element was changed.
template <typename T>
ErrorCode code_after(int array, std::size_t index, T value) {
  const PackedWeight packed = pack_matrix(small(), kAny, Layout::kRowPairs64);
  EXPECT_NO_THROW(validate(packed));
  return test::code_after_change(packed, array, index, value);
}

TEST(RowPairsTest, ValidateRefusesWhatAKernelCannotRead) {
  const auto bad = ErrorCode::kMalformedData;
  using U8 = std::uint8_t;
  // cols: unsorted, shared and alone at once, outside the block, outside the matrix
  EXPECT_EQ(code_after(1, 1, U8{3}), bad);
  EXPECT_EQ(code_after(1, 2, U8{10}), bad);
  EXPECT_EQ(code_after(1, 3, U8{64}), bad);
  EXPECT_EQ(code_after(1, 7, U8{6}), bad);
  // rows: one twice, one outside
  EXPECT_EQ(code_after(2, 0, U8{2}), bad);
  EXPECT_EQ(code_after(2, 5, U8{3}), bad);
  // counts: others than where the next block begins, past the arrays
  EXPECT_EQ(code_after(3, 0, U8{1}), bad);
  EXPECT_EQ(code_after(3, 1, U8{255}), bad);
  EXPECT_EQ(code_after(3, 5, U8{1}), bad);
  // segments: begins, pairs
  EXPECT_EQ(code_after(4, 0, std::int64_t{1}), bad);
  EXPECT_EQ(code_after(4, 4, std::int64_t{4}), bad);
  EXPECT_EQ(code_after(4, 2, std::int64_t{2}), bad);
  EXPECT_EQ(code_after(4, 2, std::int64_t{-1}), bad);
  EXPECT_EQ(code_after(4, 5, std::int64_t{1}), bad);
}

TEST(RowPairsTest, OpenRefusesANumberOfColumnsThatCannotBe) {
  for (const std::int64_t columns : {-1, 0, 4, 11, 1 << 30}) {
    const PackedWeight packed = pack_matrix(small(), kAny, Layout::kRowPairs64);
    PackedHeader header;
    std::memcpy(&header, packed.data(), sizeof(header));
    header.arrays[1].bytes = columns;
    std::memcpy(packed.data(), &header, sizeof(header));
    EXPECT_EQ(code_of([&] { packed.view(); }), ErrorCode::kMalformedData) << columns;
  }
}

// The upper bound says that half of 512x512 in row pairs takes more than memory="low" admits; what
// it takes is less.
TEST(RowPairsTest, AreAsSmallAsTheyAreNotAsTheyMightBe) {
  test::Random random(11);
  const Pattern pattern = Pattern::parse("unstructured:0.5");
  const PackedWeight format = pack_matrix(
      test::random_sparse(random, DType::kFloat32, pattern, 512, 512), pattern, Layout::kBitmask);
  const auto times_format = [&](std::int64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(format.size_bytes());
  };
  plan::LayoutSizes sizes(format);
  for (const Layout layout : {Layout::kRowPairs64, Layout::kRowPairs128}) {
    EXPECT_GT(times_format(plan::layout_bytes(format, layout)), 1.15);
    EXPECT_LE(times_format(convert(format, layout).size_bytes()), 1.15);
    EXPECT_EQ(converted_size_bytes(format, layout), convert(format, layout).size_bytes());
    EXPECT_TRUE(sizes.is_small(layout));
  }
  EXPECT_FALSE(sizes.is_small(Layout::kKcsr64));
  EXPECT_FALSE(sizes.is_small(Layout::kNm24Pairs)) << "holds another pattern";
  EXPECT_TRUE(sizes.is_small(Layout::kBitmask));
}

}  // namespace
}  // namespace gossamer
