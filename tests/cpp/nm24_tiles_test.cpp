// SPDX-License-Identifier: BSD-3-Clause
// The layout that tensor cores read, checked byte by byte against its description.
#include <gtest/gtest.h>

#include <set>

#include "core/nm24_tile.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::code_of;
using test::Matrix;

const Pattern k24 = Pattern::nm(2, 4);

Matrix random_24(test::Random& random, DType dtype, std::int64_t rows, std::int64_t cols,
                 std::int64_t batch = 1) {
  Matrix w = test::random_matrix(random, dtype, rows, cols, batch);
  test::apply_mask(w, test::random_mask(random, k24, rows, cols, batch));
  return w;
}

TEST(Nm24TilesTest, EveryByteOfATileHasOneMeaning) {
  const auto check = []<int kElementBytes>(std::integral_constant<int, kElementBytes>) {
    using Tile = detail::Nm24Tile<kElementBytes>;
    std::set<int> values;
    std::set<int> nibbles;
    for (int row = 0; row < Tile::kRows; ++row) {
      for (int slot = 0; slot < Tile::kSlots; ++slot) values.insert(Tile::value_byte(row, slot));
      for (int g = 0; g < Tile::kGroups; ++g) nibbles.insert(Tile::meta_nibble(row, g));
    }
    EXPECT_EQ(values.size(), static_cast<std::size_t>(Tile::kValueBytes / kElementBytes));
    EXPECT_EQ(*values.rbegin(), Tile::kValueBytes - kElementBytes);
    EXPECT_EQ(nibbles.size(), static_cast<std::size_t>(Tile::kMetaBytes * 2));
    EXPECT_EQ(*nibbles.rbegin(), Tile::kMetaBytes * 2 - 1);
  };
  check(std::integral_constant<int, 1>{});
  check(std::integral_constant<int, 2>{});
}

TEST(Nm24TilesTest, PlacesAsDescribed) {
  // Row 9, inputs 20 to 23 of the second tile across: 1.0 at 21 and 2.0 at 23.
  Matrix w = test::zeros(DType::kBFloat16, 70, 100);
  test::set_element(w, 9 * 100 + 64 + 21, 1.0);
  test::set_element(w, 9 * 100 + 64 + 23, 2.0);
  const PackedWeight packed = pack(w.const_view(), nullptr, k24, Layout::kNm24Tiles);
  const PackedView view = packed;
  ASSERT_EQ(view.header().arrays[0].bytes, 2 * 2 * 4608);
  const std::byte* tile = view.array(0) + 4608;
  // Slots 10 and 11 are in chunk 1, which row 9 keeps at 1 ^ (9 / 2 % 4) = 1; bfloat16 1.0 is 3f80.
  EXPECT_EQ(tile[9 * 64 + 16 + 4], std::byte{0x80});
  EXPECT_EQ(tile[9 * 64 + 16 + 5], std::byte{0x3f});
  EXPECT_EQ(tile[9 * 64 + 16 + 7], std::byte{0x40});
  // Word 4·(9 % 8) + 20 / 16 = 5, its high half, second nibble: 1 | 3 << 2; below it an empty
  // group.
  EXPECT_EQ(tile[4096 + 5 * 4 + 2], std::byte{0xd4});
  EXPECT_EQ(tile[4096 + 5 * 4], std::byte{0x44});
}

TEST(Nm24TilesTest, PacksUnpacksConvertsAndSlices) {
  test::Random random(5);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kInt8}) {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 5}, {64, 64}, {65, 70}, {130, 260}}) {
      const Matrix w = random_24(random, dtype, rows, cols, 2);
      const PackedWeight packed = pack(w.const_view(), nullptr, k24, Layout::kNm24Tiles);
      validate(packed);
      Matrix back = test::zeros(dtype, rows, cols, 2);
      unpack(packed, back.view());
      EXPECT_EQ(back, w);
      const PackedWeight nm = pack(w.const_view(), nullptr, k24, Layout::kNm);
      const PackedWeight there = convert(nm, Layout::kNm24Tiles);
      ASSERT_EQ(there.size_bytes(), packed.size_bytes());
      EXPECT_EQ(
          std::memcmp(there.data(), packed.data(), static_cast<std::size_t>(packed.size_bytes())),
          0);
      const PackedWeight again = convert(packed, Layout::kNm);
      ASSERT_EQ(again.size_bytes(), nm.size_bytes());
      EXPECT_EQ(std::memcmp(again.data(), nm.data(), static_cast<std::size_t>(nm.size_bytes())), 0);
      const PackedWeight part = slice_rows(packed, rows / 2, rows);
      validate(part);
      EXPECT_EQ(part.view().out(), rows - rows / 2);
    }
  }
}

TEST(Nm24TilesTest, RefusesWhatItCannotHold) {
  test::Random random(6);
  const Matrix wide = random_24(random, DType::kFloat32, 4, 8);
  EXPECT_EQ(code_of([&] { pack(wide.const_view(), nullptr, k24, Layout::kNm24Tiles); }),
            ErrorCode::kInvalidArgument);
  const Matrix w = random_24(random, DType::kFloat16, 4, 8);
  EXPECT_EQ(code_of([&] {
              pack(w.const_view(), nullptr, Pattern::parse("unstructured"), Layout::kNm24Tiles);
            }),
            ErrorCode::kInvalidArgument);
}

TEST(Nm24TilesTest, ValidatesPositionsAndPadding) {
  test::Random random(7);
  const Matrix w = random_24(random, DType::kFloat16, 60, 60);
  const auto code_after = [&](std::int64_t offset, std::byte value) {
    const PackedWeight packed = pack(w.const_view(), nullptr, k24, Layout::kNm24Tiles);
    packed.data()[sizeof(PackedHeader) + static_cast<std::size_t>(offset)] = value;
    return code_of([&] { validate(packed); });
  };
  const auto bad = ErrorCode::kMalformedData;
  using Tile = detail::Nm24Tile<2>;
  // Equal positions; a value below the last row and one past the last column; a group out there.
  EXPECT_EQ(code_after(Tile::kValueBytes, std::byte{0x55}), bad);
  EXPECT_EQ(code_after(Tile::value_byte(62, 3), std::byte{1}), bad);
  EXPECT_EQ(code_after(Tile::value_byte(2, 31), std::byte{1}), bad);
  EXPECT_EQ(code_after(Tile::kValueBytes + Tile::meta_nibble(63, 0) / 2, std::byte{0x88}), bad);
}

}  // namespace
}  // namespace gossamer
