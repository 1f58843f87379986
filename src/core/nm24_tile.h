// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

// One tile of the layout nm24_tiles: 64 rows by as many inputs as make 64 bytes of kept values a
// row (64 inputs of 16-bit values, 128 of 8-bit ones), in the order in which a sparse tensor core
// of compute capability 9.0 reads its operand from shared memory. A tile is one contiguous run of
// bytes, so that one bulk copy brings values and metadata.
//
//   values    64 rows of 64 bytes; the four 16-byte chunks of row r are permuted, chunk c lies at
//             c ^ (r / 2 % 4) (the 64-byte swizzle of shared memory)
//   metadata  a nibble i0 | i1 << 2 for each group of four inputs. 16-bit values: word
//             32·(r/16) + 4·(r%8) + q covers the inputs 16q .. 16q+15 of row r in its low half
//             where r % 16 < 8, in its high half otherwise. 8-bit values: for each 64 inputs 128
//             words; word 32·(r/16) + 4·(r%8) + (r%16)/8 + 2·q covers the inputs 32q .. 32q+31.
//
// The maps are those of wgmma.mma_async.sp (PTX ISA, "Sparse matrix storage") with the selectors 0
// and 1 in turn for the two halves of 64 inputs.
namespace gossamer::detail {

/// The tile of values that have `kElementBytes` bytes (1 or 2).
template <int kElementBytes>
struct Nm24Tile {
  static_assert(kElementBytes == 1 || kElementBytes == 2);
  static constexpr int kRows = 64;
  static constexpr int kRowBytes = 64;
  static constexpr int kSlots = kRowBytes / kElementBytes;  ///< kept values of a row
  static constexpr int kInputs = 2 * kSlots;
  static constexpr int kGroups = kInputs / 4;  ///< of a row
  static constexpr int kValueBytes = kRows * kRowBytes;
  static constexpr int kMetaBytes = kRows * kGroups / 2;
  static constexpr int kBytes = kValueBytes + kMetaBytes;

  /// Byte of the kept value `slot` (two for each group) of `row`.
  static constexpr int value_byte(int row, int slot) {
    constexpr int kChunk = 16 / kElementBytes;
    return row * kRowBytes + ((slot / kChunk) ^ (row / 2 % 4)) * 16 + slot % kChunk * kElementBytes;
  }

  /// Nibble of group `group` of `row`, counted from the start of the metadata, low nibbles first.
  static constexpr int meta_nibble(int row, int group) {
    const int lane = row / 16 * 32 + row % 8 * 4;
    if constexpr (kElementBytes == 2) {
      return (lane + group / 4) * 8 + row % 16 / 8 * 4 + group % 4;
    } else {
      const int word = group / 16 * 128 + lane + row % 16 / 8 + group % 16 / 8 * 2;
      return word * 8 + group % 8;
    }
  }
};

/// What a tile and a nibble of an empty group hold: positions 0 and 1.
inline constexpr int kNm24EmptyNibble = 0x4;

/// Tiles along the rows and along the inputs; at least one of each, so that a kernel always finds
/// something to read.
constexpr std::int64_t nm24_row_tiles(std::int64_t out) { return out <= 64 ? 1 : (out + 63) / 64; }
constexpr std::int64_t nm24_input_tiles(std::int64_t in, int element_bytes) {
  const std::int64_t inputs = 128 / element_bytes;
  return in <= inputs ? 1 : (in + inputs - 1) / inputs;
}
constexpr std::int64_t nm24_tile_bytes(int element_bytes) {
  return element_bytes == 2 ? Nm24Tile<2>::kBytes : Nm24Tile<1>::kBytes;
}

}  // namespace gossamer::detail
