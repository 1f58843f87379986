// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>
#include <vector>

#include "core/encode.h"
#include "core/half.h"
#include "core/nm24_tile.h"
#include "core/nm_group.h"

namespace gossamer::detail {
namespace {

/// Writes one row into its tiles, which are filled with empty groups. `tiles` is the first tile of
/// the row's row of tiles.
template <typename Raw>
void fill_row(const NmShape& shape, std::int64_t in, const std::byte* values,
              const std::uint8_t* mask, std::int64_t row, std::byte* tiles) {
  using Tile = Nm24Tile<static_cast<int>(sizeof(Raw))>;
  const int tile_row = static_cast<int>(row % Tile::kRows);
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    std::byte* const tile = tiles + g / Tile::kGroups * Tile::kBytes;
    const int group = static_cast<int>(g % Tile::kGroups);
    std::uint64_t bits = nm_filled_group(shape, in, mask, g, row);
    const int nibble = Tile::meta_nibble(tile_row, group);
    std::byte& meta = tile[Tile::kValueBytes + nibble / 2];
    const int shift = nibble % 2 * 4;
    meta = (meta & ~(std::byte{0xf} << shift)) |
           static_cast<std::byte>(nm_group_code(shape, bits) << shift);
    for (int slot = 2 * group; bits != 0; bits &= bits - 1, ++slot) {
      const std::int64_t col = g * 4 + std::countr_zero(bits);
      const Raw value = col < in ? load_raw<Raw>(values + col * std::int64_t{sizeof(Raw)}) : Raw{0};
      store_raw(tile + Tile::value_byte(tile_row, slot), value);
    }
  }
}

template <typename Raw>
void fill(const RowSource& source, const FormatInfo& info, std::byte* tiles) {
  using Tile = Nm24Tile<static_cast<int>(sizeof(Raw))>;
  constexpr int kEmptyByte = kNm24EmptyNibble | kNm24EmptyNibble << 4;
  const NmShape shape = nm_shape(info.pattern, info.in);
  const std::int64_t row_tiles = nm24_row_tiles(info.out);
  const std::int64_t row_bytes = nm24_input_tiles(info.in, sizeof(Raw)) * Tile::kBytes;
  for (std::byte* tile = tiles; tile != tiles + info.batch * row_tiles * row_bytes;
       tile += Tile::kBytes) {
    std::memset(tile, 0, Tile::kValueBytes);
    std::memset(tile + Tile::kValueBytes, kEmptyByte, Tile::kMetaBytes);
  }
  std::vector<std::byte> values(static_cast<std::size_t>(info.in) * sizeof(Raw));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  for (std::int64_t b = 0; b < info.batch; ++b) {
    for (std::int64_t r = 0; r < info.out; ++r) {
      source.read(b, r, values.data(), mask.data());
      fill_row<Raw>(shape, info.in, values.data(), mask.data(), r,
                    tiles + (b * row_tiles + r / Tile::kRows) * row_bytes);
    }
  }
}

}  // namespace

PackedWeight encode_nm24_tiles(const RowSource& source, const FormatInfo& info,
                               const PackedAllocator& allocator) {
  const PackedBuffer buffer(info, 0, allocator);
  auto* const tiles = buffer.array<std::byte>(Nm24TilesArrays::kTiles);
  if (dtype_bytes(info.dtype) == 2) {
    fill<std::uint16_t>(source, info, tiles);
  } else {
    fill<std::uint8_t>(source, info, tiles);
  }
  return buffer.finish();
}

}  // namespace gossamer::detail
