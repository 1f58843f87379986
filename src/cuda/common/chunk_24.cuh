// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/nm24_tile.h"
#include "cuda/pack_sp24.h"

// What packing and unpacking of 2:4 weights share: a thread has one chunk, the 16 bytes of kept
// values that 32 bytes of a dense row become (16 inputs of 16-bit values, 32 of 8-bit ones) and
// their 16 or 32 bits of metadata; where chunks lie in tiles and in the format nm.
namespace gossamer::cuda::pack24 {

enum class Element { k16Bit, kFloat8, kInt8 };

constexpr int element_bytes(Element element) { return element == Element::k16Bit ? 2 : 1; }

/// A chunk of values of so many bytes.
template <int kElementBytes>
struct Chunk {
  using Tile = detail::Nm24Tile<kElementBytes>;
  static constexpr int kInputs = 32 / kElementBytes;
  static constexpr int kGroups = kInputs / 4;
  static constexpr int kOfTile = Tile::kInputs / kInputs;  ///< chunks of a row of a tile
  static_assert(kOfTile == 4);
};

/// A kept value for each bit: the nibble of ascending positions i0 | i1 << 2. Sets of fewer than
/// two are filled from below; sets of three and four have none.
constexpr std::uint64_t nibble_table() {
  std::uint64_t table = 0;
  for (unsigned mask = 0; mask < 16; ++mask) {
    unsigned filled = mask;
    int kept = 0;
    for (unsigned b = filled; b != 0; b &= b - 1) ++kept;
    if (kept > 2) continue;
    for (; kept < 2; ++kept) filled |= filled + 1;
    unsigned positions[2] = {};
    int count = 0;
    for (unsigned i = 0; i < 4; ++i) {
      if ((filled >> i & 1) != 0) positions[count++] = i;
    }
    table |= static_cast<std::uint64_t>(positions[0] | positions[1] << 2) << (4 * mask);
  }
  return table;
}

__device__ __forceinline__ std::uint32_t nibble_of(std::uint32_t kept) {
  constexpr std::uint64_t kNibbles = nibble_table();
  return static_cast<std::uint32_t>(kNibbles >> (4 * kept)) & 15;
}

/// The set that a nibble names.
__device__ __forceinline__ std::uint32_t set_of(std::uint32_t nibble) {
  return 1u << (nibble & 3) | 1u << (nibble >> 2);
}

/// Four bits as four bytes of 0 and 1, and back.
__device__ __forceinline__ std::uint32_t bytes_of_bits(std::uint32_t bits) {
  return bits * 0x00204081u & 0x01010101u;
}
__device__ __forceinline__ std::uint32_t bits_of_bytes(std::uint32_t bytes) {
  return (bytes & 0x01010101u) * 0x01020408u >> 24 & 15;
}

/// The two largest of four, ties to the lower position: who wins two of its three comparisons.
__device__ __forceinline__ std::uint32_t two_largest(std::uint32_t a, std::uint32_t b,
                                                     std::uint32_t c, std::uint32_t d) {
  const bool ab = a >= b, ac = a >= c, ad = a >= d, bc = b >= c, bd = b >= d, cd = c >= d;
  const auto most = [](bool x, bool y, bool z) { return (x && y) || (x && z) || (y && z); };
  return (most(ab, ac, ad) ? 1u : 0u) | (most(!ab, bc, bd) ? 2u : 0u) |
         (most(!ac, !bc, cd) ? 4u : 0u) | (most(!ad, !bd, !cd) ? 8u : 0u);
}

/// A group of four 16-bit values, two words.
struct Pair {
  std::uint32_t low;
  std::uint32_t high;
};

constexpr std::uint32_t kMagnitude16 = 0x7fff;

/// The positions of a 16-bit group's non-zeros; −0.0 is zero.
__device__ __forceinline__ std::uint32_t nonzeros16(Pair g) {
  return ((g.low & kMagnitude16) != 0 ? 1u : 0u) | ((g.low & kMagnitude16 << 16) != 0 ? 2u : 0u) |
         ((g.high & kMagnitude16) != 0 ? 4u : 0u) | ((g.high & kMagnitude16 << 16) != 0 ? 8u : 0u);
}
__device__ __forceinline__ std::uint32_t two_largest16(Pair g) {
  return two_largest(g.low & kMagnitude16, g.low >> 16 & kMagnitude16, g.high & kMagnitude16,
                     g.high >> 16 & kMagnitude16);
}
/// The two 16-bit values of a group that a nibble names.
__device__ __forceinline__ std::uint32_t select16(Pair g, std::uint32_t nibble) {
  const std::uint32_t first = nibble & 3;
  const std::uint32_t second = nibble >> 2;
  const std::uint32_t selector = first * 0x22 + 0x10 + ((second * 0x22 + 0x10) << 8);
  return __byte_perm(g.low, g.high, selector);
}

/// Whether a group keeps no more than 2:4 allows; `kept` has a bit for each position.
__device__ __forceinline__ bool is_legal(std::uint32_t kept) { return __popc(kept) <= 2; }

// --- Where chunks lie ---

/// One matrix of a packed weight as the kernels see it.
struct Matrix {
  unsigned char* tiles = nullptr;  ///< or null: the format nm
  unsigned char* values = nullptr;
  unsigned char* indices = nullptr;
  std::int64_t row_tiles = 0;
  std::int64_t input_tiles = 0;
  std::int64_t groups = 0;       ///< of a row
  std::int64_t index_bytes = 0;  ///< of a row
  int out = 0;
};

template <int kElementBytes>
Matrix matrix_of(const PackedMatrix& packed) {
  Matrix m;
  m.tiles = reinterpret_cast<unsigned char*>(packed.tiles);
  m.values = reinterpret_cast<unsigned char*>(packed.values);
  m.indices = reinterpret_cast<unsigned char*>(packed.indices);
  m.row_tiles = detail::nm24_row_tiles(packed.out);
  m.input_tiles = detail::nm24_input_tiles(packed.in, kElementBytes);
  m.groups = (packed.in + 3) / 4;
  m.index_bytes = (m.groups + 1) / 2;
  m.out = static_cast<int>(packed.out);
  return m;
}

/// Whether all rows of a matrix, `stride` bytes apart, begin at multiples of 16 bytes.
inline bool is_aligned(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 16 == 0;
}

/// Which row of a tile and which of its row's four chunks a thread of a block of 256 has: a warp
/// reads 128 contiguous bytes of each of eight dense rows and writes 64, and the metadata of rows r
/// and r + 8, which are neighbours in a tile.
struct Place {
  int row;
  int quarter;
  __device__ __forceinline__ explicit Place(int thread) {
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int pair = lane / 4;  // 0..3: rows r, 4..7: rows r + 8
    row = warp / 2 * 16 + warp % 2 * 4 + pair % 4 + pair / 4 * 8;
    quarter = lane % 4;
  }
};

template <int kElementBytes>
__device__ __forceinline__ unsigned char* chunk_of_tile(const Matrix& m, std::int64_t row,
                                                        std::int64_t chunk, int& value_byte,
                                                        int& meta_byte) {
  using C = Chunk<kElementBytes>;
  using Tile = typename C::Tile;
  const int tile_row = static_cast<int>(row % Tile::kRows);
  const int quarter = static_cast<int>(chunk % C::kOfTile);
  value_byte = Tile::value_byte(tile_row, quarter * (C::kInputs / 2));
  meta_byte = Tile::kValueBytes + Tile::meta_nibble(tile_row, quarter * C::kGroups) / 2;
  return m.tiles + (row / Tile::kRows * m.input_tiles + chunk / C::kOfTile) * Tile::kBytes;
}

template <int kElementBytes>
__device__ __forceinline__ void store_meta(unsigned char* to, std::uint32_t meta) {
  if constexpr (kElementBytes == 2) {
    *reinterpret_cast<std::uint16_t*>(to) = static_cast<std::uint16_t>(meta);
  } else {
    *reinterpret_cast<std::uint32_t*>(to) = meta;
  }
}

template <int kElementBytes>
__device__ __forceinline__ std::uint32_t load_meta(const unsigned char* from) {
  if constexpr (kElementBytes == 2) {
    return *reinterpret_cast<const std::uint16_t*>(from);
  } else {
    return *reinterpret_cast<const std::uint32_t*>(from);
  }
}

/// Writes a chunk of a row; in the format nm only what is inside the matrix.
template <int kElementBytes>
__device__ __forceinline__ void store_chunk(const Matrix& m, std::int64_t row, std::int64_t chunk,
                                            const std::uint32_t (&stored)[4], std::uint32_t meta) {
  using C = Chunk<kElementBytes>;
  const uint4 wide = make_uint4(stored[0], stored[1], stored[2], stored[3]);
  if (m.tiles != nullptr) {
    int value_byte, meta_byte;
    unsigned char* const tile = chunk_of_tile<kElementBytes>(m, row, chunk, value_byte, meta_byte);
    *reinterpret_cast<uint4*>(tile + value_byte) = wide;
    store_meta<kElementBytes>(tile + meta_byte, meta);
    return;
  }
  const std::int64_t first = chunk * C::kGroups;
  if (row >= m.out || first >= m.groups) return;
  constexpr int kGroupBytes = 2 * kElementBytes;
  unsigned char* const values = m.values + (row * m.groups + first) * kGroupBytes;
  unsigned char* const indices = m.indices + row * m.index_bytes + first / 2;
  if (m.groups % C::kGroups == 0) {  // every row begins at a multiple of 16 bytes
    *reinterpret_cast<uint4*>(values) = wide;
    store_meta<kElementBytes>(indices, meta);
    return;
  }
#pragma unroll
  for (int g = 0; g < C::kGroups; ++g) {
    if (first + g >= m.groups) break;
    if constexpr (kElementBytes == 2) {
      auto* const to = reinterpret_cast<std::uint16_t*>(values) + 2 * g;
      to[0] = static_cast<std::uint16_t>(stored[g]);
      to[1] = static_cast<std::uint16_t>(stored[g] >> 16);
    } else {
      const std::uint32_t two = stored[g / 2] >> (16 * (g % 2));
      values[2 * g] = static_cast<unsigned char>(two);
      values[2 * g + 1] = static_cast<unsigned char>(two >> 8);
    }
    if (g % 2 == 0) {
      // A row's last byte has one nibble where the groups are odd.
      const std::uint32_t both = meta >> (4 * g) & (first + g + 1 < m.groups ? 0xff : 0x0f);
      indices[g / 2] = static_cast<unsigned char>(both);
    }
  }
}

/// Reads a chunk; past the matrix it is empty.
template <int kElementBytes>
__device__ __forceinline__ void load_chunk(const Matrix& m, std::int64_t row, std::int64_t chunk,
                                           std::uint32_t (&stored)[4], std::uint32_t& meta) {
  using C = Chunk<kElementBytes>;
  const auto take = [&](const unsigned char* values, const unsigned char* indices) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(values));
    stored[0] = v.x, stored[1] = v.y, stored[2] = v.z, stored[3] = v.w;
    meta = load_meta<kElementBytes>(indices);
  };
  if (m.tiles != nullptr) {
    int value_byte, meta_byte;
    const unsigned char* const tile =
        chunk_of_tile<kElementBytes>(m, row, chunk, value_byte, meta_byte);
    take(tile + value_byte, tile + meta_byte);
    return;
  }
  const std::int64_t first = chunk * C::kGroups;
  constexpr int kGroupBytes = 2 * kElementBytes;
  const unsigned char* const values = m.values + (row * m.groups + first) * kGroupBytes;
  const unsigned char* const indices = m.indices + row * m.index_bytes + first / 2;
  if (m.groups % C::kGroups == 0 && row < m.out && first < m.groups) {
    take(values, indices);
    return;
  }
  stored[0] = stored[1] = stored[2] = stored[3] = 0;
  meta = 0;
#pragma unroll
  for (int g = 0; g < C::kGroups; ++g) {
    std::uint32_t nibble = detail::kNm24EmptyNibble;
    if (row < m.out && first + g < m.groups) {
      nibble = indices[g / 2] >> (g % 2 * 4) & 15;
      if constexpr (kElementBytes == 2) {
        const auto* const from = reinterpret_cast<const std::uint16_t*>(values) + 2 * g;
        stored[g] = from[0] | static_cast<std::uint32_t>(from[1]) << 16;
      } else {
        const std::uint32_t two = values[2 * g] | static_cast<std::uint32_t>(values[2 * g + 1])
                                                      << 8;
        stored[g / 2] |= two << (16 * (g % 2));
      }
    }
    meta |= nibble << (4 * g);
  }
}

/// The first block also writes the header: nothing is copied from the host.
__device__ __forceinline__ void store_header(const PackedHeader& header, unsigned char* packed) {
  if (packed != nullptr && blockIdx.x == 0 && threadIdx.x < sizeof(PackedHeader) / 4) {
    reinterpret_cast<std::uint32_t*>(packed)[threadIdx.x] =
        reinterpret_cast<const std::uint32_t*>(&header)[threadIdx.x];
  }
}

/// Which of a chunk's inputs a mask keeps, a bit each; `in` columns of a row that is inside.
template <int kInputs>
__device__ __forceinline__ std::uint32_t load_mask(const bool* row, std::int64_t column,
                                                   std::int64_t in, bool aligned) {
  std::uint32_t kept = 0;
  if (aligned && column + kInputs <= in) {
    const auto* const from = reinterpret_cast<const uint4*>(row + column);
#pragma unroll
    for (int i = 0; i < kInputs / 16; ++i) {
      const uint4 v = __ldg(from + i);
      kept |= (bits_of_bytes(v.x) | bits_of_bytes(v.y) << 4 | bits_of_bytes(v.z) << 8 |
               bits_of_bytes(v.w) << 12)
              << (16 * i);
    }
    return kept;
  }
  // Not unrolled: the edge of a matrix is no reason to hold that many registers.
#pragma unroll 1
  for (int i = 0; i < kInputs; ++i) {
    if (column + i < in && row[column + i]) kept |= 1u << i;
  }
  return kept;
}

}  // namespace gossamer::cuda::pack24
