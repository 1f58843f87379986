// SPDX-License-Identifier: BSD-3-Clause
// 2:4 tiles (core/nm24_tile.h) of 16-bit weights: one thread moves 16 inputs of one row, which are
// one 16-byte chunk of kept values and 16 bits of metadata.
//
//   a warp:  8 rows × 4 threads; four threads read 128 contiguous bytes of a row and write 64. Rows
//            r and r + 8 are held by lanes l and l + 16, so that their metadata meets in one word.
//
// Bound: bytes, in·out·(2 + 9/8) over the memory's bandwidth; the selection is a table of sixteen
// nibbles in a register and two byte permutes a group.
#include "cuda/pack_sp24.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/nm24_tile.h"
#include "cuda/common/runtime.h"

namespace gossamer::cuda {
namespace {

using Tile = detail::Nm24Tile<2>;

constexpr int kThreads = 256;
constexpr int kInputs = 16;  // of a thread
constexpr std::uint32_t kMagnitude = 0x7fff;

/// Which row of a tile and which quarter of its inputs a thread of a block has.
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
  __device__ __forceinline__ int value_byte() const {
    return Tile::value_byte(row, quarter * (kInputs / 2));
  }
  /// Of the word that holds both rows' metadata.
  __device__ __forceinline__ int meta_byte() const {
    return Tile::kValueBytes + Tile::meta_nibble(row % 8 + row / 16 * 16, quarter * 4) / 2;
  }
};

/// Nibble of positions for each set of kept ones; sets of three and four have none.
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

/// The two 16-bit values of a group that a nibble names.
__device__ __forceinline__ std::uint32_t select(std::uint32_t low, std::uint32_t high,
                                                std::uint32_t nibble) {
  const std::uint32_t first = nibble & 3;
  const std::uint32_t second = nibble >> 2;
  const std::uint32_t selector = first * 0x22 + 0x10 + ((second * 0x22 + 0x10) << 8);
  return __byte_perm(low, high, selector);
}

/// Negative zeros become zeros.
__device__ __forceinline__ std::uint32_t without_negative_zeros(std::uint32_t pair) {
  const std::uint32_t low = (pair & kMagnitude) == 0 ? 0 : pair & 0xffff;
  const std::uint32_t high = (pair & kMagnitude << 16) == 0 ? 0 : pair & 0xffff0000;
  return low | high;
}

__device__ __forceinline__ std::uint32_t nonzeros(std::uint32_t low, std::uint32_t high) {
  return ((low & 0xffff) != 0 ? 1u : 0u) | (low >> 16 != 0 ? 2u : 0u) |
         ((high & 0xffff) != 0 ? 4u : 0u) | (high >> 16 != 0 ? 8u : 0u);
}

/// The two largest magnitudes of a group, ties to the lower position.
__device__ __forceinline__ std::uint32_t two_largest(std::uint32_t low, std::uint32_t high) {
  // Magnitude above, lower positions larger below: distinct keys.
  std::uint32_t keys[4] = {(low & kMagnitude) << 2 | 3, (low >> 16 & kMagnitude) << 2 | 2,
                           (high & kMagnitude) << 2 | 1, (high >> 16 & kMagnitude) << 2};
  std::uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int larger = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) larger += keys[k] > keys[i] ? 1 : 0;
    if (larger < 2) kept |= 1u << i;
  }
  return kept;
}

/// Sixteen inputs of a row, zeros past the edges.
template <bool kAligned>
__device__ __forceinline__ void load_inputs(std::uint32_t (&words)[8], const unsigned short* row,
                                            std::int64_t column, std::int64_t in, bool inside) {
  if (kAligned && inside && column + kInputs <= in) {
    const auto* from = reinterpret_cast<const uint4*>(row + column);
    const uint4 a = __ldg(from);
    const uint4 b = __ldg(from + 1);
    words[0] = a.x, words[1] = a.y, words[2] = a.z, words[3] = a.w;
    words[4] = b.x, words[5] = b.y, words[6] = b.z, words[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::int64_t c = column + 2 * i;
    const std::uint32_t first = inside && c < in ? row[c] : 0;
    const std::uint32_t second = inside && c + 1 < in ? row[c + 1] : 0;
    words[i] = first | second << 16;
  }
}

struct TileGrid {
  std::int64_t row_tiles;
  std::int64_t input_tiles;
};

/// Writes one thread's chunk and, with its partner, a word of metadata.
__device__ __forceinline__ void store_tile(unsigned char* tile, const Place& place,
                                           const std::uint32_t (&values)[4], std::uint32_t meta) {
  *reinterpret_cast<uint4*>(tile + place.value_byte()) =
      make_uint4(values[0], values[1], values[2], values[3]);
  const std::uint32_t partner = __shfl_xor_sync(~0u, meta, 16);
  if (threadIdx.x % 32 < 16) {
    *reinterpret_cast<std::uint32_t*>(tile + place.meta_byte()) = meta | partner << 16;
  }
}

/// The first block also writes the header: nothing is copied from the host.
__device__ __forceinline__ void store_header(const PackedHeader& header, unsigned char* packed) {
  if (blockIdx.x == 0 && threadIdx.x < sizeof(PackedHeader) / 4) {
    reinterpret_cast<std::uint32_t*>(packed)[threadIdx.x] =
        reinterpret_cast<const std::uint32_t*>(&header)[threadIdx.x];
  }
}

template <bool kAligned, bool kMasked, Selection kSelection>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const unsigned short* values, std::int64_t stride, const bool* mask,
                std::int64_t mask_stride, int out, int in,
                const __grid_constant__ PackedHeader header, std::int64_t offset,
                unsigned char* packed, TileGrid grid, unsigned long long* violation) {
  constexpr std::uint64_t kNibbles = nibble_table();
  store_header(header, packed);
  unsigned char* const tiles = packed + offset;
  const Place place(static_cast<int>(threadIdx.x));
  const std::int64_t count = grid.row_tiles * grid.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / grid.input_tiles * Tile::kRows + place.row;
    const std::int64_t column = t % grid.input_tiles * Tile::kInputs + place.quarter * kInputs;
    const bool inside = row < out;
    std::uint32_t words[8];
    load_inputs<kAligned>(words, values + row * stride, column, in, inside);
    std::uint32_t stored[4];
    std::uint32_t meta = 0;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      std::uint32_t low = without_negative_zeros(words[2 * g]);
      std::uint32_t high = without_negative_zeros(words[2 * g + 1]);
      std::uint32_t kept;
      if constexpr (kMasked) {
        kept = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const std::int64_t c = column + 4 * g + i;
          if (inside && c < in && mask[row * mask_stride + c]) kept |= 1u << i;
        }
      } else if constexpr (kSelection == Selection::kMagnitude) {
        kept = two_largest(low, high);
      } else {
        kept = nonzeros(low, high);
      }
      if (kSelection == Selection::kVerify && __popc(kept) > 2) {
        atomicMin(violation, static_cast<unsigned long long>(row * in + column + 4 * g));
        kept = 0;
      }
      const auto nibble = static_cast<std::uint32_t>(kNibbles >> (4 * kept)) & 15;
      if constexpr (kMasked) {
        // What fills a group up to two is zero, whatever the dense weight holds there.
        low &= ((kept & 1) != 0 ? 0xffffu : 0u) | ((kept & 2) != 0 ? 0xffff0000u : 0u);
        high &= ((kept & 4) != 0 ? 0xffffu : 0u) | ((kept & 8) != 0 ? 0xffff0000u : 0u);
      }
      stored[g] = select(low, high, nibble);
      meta |= nibble << (4 * g);
    }
    store_tile(tiles + t * Tile::kBytes, place, stored, meta);
  }
}

/// A thread's kept values and metadata of one tile.
__device__ __forceinline__ void load_tile(const unsigned char* tile, const Place& place,
                                          std::uint32_t (&values)[4], std::uint32_t& meta) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(tile + place.value_byte()));
  values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
  const std::uint32_t word =
      __ldg(reinterpret_cast<const std::uint32_t*>(tile + place.meta_byte()));
  meta = place.row % 16 < 8 ? word & 0xffff : word >> 16;
}

template <bool kAligned, bool kKept>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const unsigned char* tiles, unsigned short* values, std::int64_t stride,
                  bool* kept, int out, int in, TileGrid grid) {
  const Place place(static_cast<int>(threadIdx.x));
  const std::int64_t count = grid.row_tiles * grid.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / grid.input_tiles * Tile::kRows + place.row;
    const std::int64_t column = t % grid.input_tiles * Tile::kInputs + place.quarter * kInputs;
    if (row >= out || column >= in) continue;
    std::uint32_t stored[4];
    std::uint32_t meta;
    load_tile(tiles + t * Tile::kBytes, place, stored, meta);
    std::uint32_t words[8] = {};
    std::uint32_t mask = 0;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const std::uint32_t nibble = meta >> (4 * g) & 15;
      const std::uint32_t first = nibble & 3;
      const std::uint32_t second = nibble >> 2;
      mask |= (1u << first | 1u << second) << (4 * g);
      const std::uint64_t group = static_cast<std::uint64_t>(stored[g] & 0xffff) << (16 * first) |
                                  static_cast<std::uint64_t>(stored[g] >> 16) << (16 * second);
      words[2 * g] = static_cast<std::uint32_t>(group);
      words[2 * g + 1] = static_cast<std::uint32_t>(group >> 32);
    }
    if (values != nullptr) {
      unsigned short* const to = values + row * stride + column;
      if (kAligned && column + kInputs <= in) {
        auto* const wide = reinterpret_cast<uint4*>(to);
        wide[0] = make_uint4(words[0], words[1], words[2], words[3]);
        wide[1] = make_uint4(words[4], words[5], words[6], words[7]);
      } else {
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
          if (column + i < in) {
            to[i] = static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2)));
          }
        }
      }
    }
    if constexpr (kKept) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        if (column + i < in) {
          kept[row * static_cast<std::int64_t>(in) + column + i] = (mask >> i & 1) != 0;
        }
      }
    }
  }
}

/// Groups and bytes of a row of the format nm.
struct NmRow {
  std::int64_t groups;
  std::int64_t index_bytes;
  __host__ __device__ explicit NmRow(std::int64_t in)
      : groups((in + 3) / 4), index_bytes((groups + 1) / 2) {}
};

__global__ void __launch_bounds__(kThreads)
    from_nm_kernel(const unsigned short* values, const std::uint8_t* indices, int out, int in,
                   const __grid_constant__ PackedHeader header, std::int64_t offset,
                   unsigned char* packed, TileGrid grid) {
  store_header(header, packed);
  unsigned char* const tiles = packed + offset;
  const Place place(static_cast<int>(threadIdx.x));
  const NmRow nm(in);
  const std::int64_t count = grid.row_tiles * grid.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / grid.input_tiles * Tile::kRows + place.row;
    const std::int64_t first = t % grid.input_tiles * Tile::kGroups + place.quarter * 4;
    std::uint32_t stored[4] = {};
    std::uint32_t meta = 0;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const std::int64_t group = first + g;
      std::uint32_t nibble = detail::kNm24EmptyNibble;
      if (row < out && group < nm.groups) {
        const unsigned short* from = values + (row * nm.groups + group) * 2;
        stored[g] = from[0] | static_cast<std::uint32_t>(from[1]) << 16;
        nibble = indices[row * nm.index_bytes + group / 2] >> (group % 2 * 4) & 15;
      }
      meta |= nibble << (4 * g);
    }
    store_tile(tiles + t * Tile::kBytes, place, stored, meta);
  }
}

__global__ void __launch_bounds__(kThreads)
    to_nm_kernel(const unsigned char* tiles, const __grid_constant__ PackedHeader header,
                 unsigned short* values, std::uint8_t* indices, unsigned char* packed, int out,
                 int in, TileGrid grid) {
  store_header(header, packed);
  const Place place(static_cast<int>(threadIdx.x));
  const NmRow nm(in);
  const std::int64_t count = grid.row_tiles * grid.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / grid.input_tiles * Tile::kRows + place.row;
    const std::int64_t first = t % grid.input_tiles * Tile::kGroups + place.quarter * 4;
    if (row >= out || first >= nm.groups) continue;
    std::uint32_t stored[4];
    std::uint32_t meta;
    load_tile(tiles + t * Tile::kBytes, place, stored, meta);
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const std::int64_t group = first + g;
      if (group >= nm.groups) break;
      unsigned short* const to = values + (row * nm.groups + group) * 2;
      to[0] = static_cast<unsigned short>(stored[g]);
      to[1] = static_cast<unsigned short>(stored[g] >> 16);
      if (g % 2 == 0) {
        // A row's last byte has one nibble where the groups are odd.
        const std::uint32_t both = meta >> (4 * g) & (group + 1 < nm.groups ? 0xff : 0x0f);
        indices[row * nm.index_bytes + group / 2] = static_cast<std::uint8_t>(both);
      }
    }
  }
}

TileGrid grid_of(std::int64_t out, std::int64_t in) {
  return {detail::nm24_row_tiles(out), detail::nm24_input_tiles(in, 2)};
}

unsigned blocks_for(const TileGrid& grid) {
  constexpr std::int64_t kMost = 1 << 30;
  return static_cast<unsigned>(std::min(grid.row_tiles * grid.input_tiles, kMost));
}

bool is_aligned(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

void require_16_bit(DType dtype) {
  if (dtype == DType::kBFloat16 || dtype == DType::kFloat16) return;
  throw Error(ErrorCode::kUnsupported,
              "2:4 tiles are made of float16 and bfloat16 weights on a GPU; convert the weight "
              "with .to(torch.bfloat16)");
}

template <bool kAligned, bool kMasked, Selection kSelection>
void launch_pack(const DenseWeight& w, const PackedHeader& header, std::int64_t offset,
                 std::byte* packed, std::uint64_t* violation, cudaStream_t stream) {
  const TileGrid grid = grid_of(w.out, w.in);
  pack_kernel<kAligned, kMasked, kSelection><<<blocks_for(grid), kThreads, 0, stream>>>(
      static_cast<const unsigned short*>(w.values), w.row_stride, w.mask, w.mask_stride,
      static_cast<int>(w.out), static_cast<int>(w.in), header, offset,
      reinterpret_cast<unsigned char*>(packed), grid,
      reinterpret_cast<unsigned long long*>(violation));
  check(cudaGetLastError(), "pack_sp24");
}

}  // namespace

void pack_sp24(const DenseWeight& w, const PackedHeader& header, std::int64_t offset,
               std::byte* packed, Selection selection, std::uint64_t* violation, void* stream) {
  require_16_bit(w.dtype);
  auto* const on = static_cast<cudaStream_t>(stream);
  const bool aligned = is_aligned(w.values, w.row_stride);
  if (selection == Selection::kMagnitude) {
    (aligned ? launch_pack<true, false, Selection::kMagnitude>
             : launch_pack<false, false, Selection::kMagnitude>)(w, header, offset, packed, nullptr,
                                                                 on);
    return;
  }
  check(cudaMemsetAsync(violation, 0xff, sizeof(*violation), on), "cudaMemsetAsync");
  if (w.mask != nullptr) {
    (aligned
         ? launch_pack<true, true, Selection::kVerify>
         : launch_pack<false, true, Selection::kVerify>)(w, header, offset, packed, violation, on);
  } else {
    (aligned
         ? launch_pack<true, false, Selection::kVerify>
         : launch_pack<false, false, Selection::kVerify>)(w, header, offset, packed, violation, on);
  }
}

void unpack_sp24(const std::byte* tiles, const DenseWeight& w, bool* kept, void* stream) {
  require_16_bit(w.dtype);
  if (w.out == 0 || w.in == 0) return;
  const TileGrid grid = grid_of(w.out, w.in);
  const bool aligned = is_aligned(w.values, w.row_stride);
  const auto kernel = kept == nullptr
                          ? (aligned ? unpack_kernel<true, false> : unpack_kernel<false, false>)
                          : (aligned ? unpack_kernel<true, true> : unpack_kernel<false, true>);
  kernel<<<blocks_for(grid), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const unsigned char*>(tiles), static_cast<unsigned short*>(w.values),
      w.row_stride, kept, static_cast<int>(w.out), static_cast<int>(w.in), grid);
  check(cudaGetLastError(), "unpack_sp24");
}

void tiles_from_nm24(const Nm24Format& format, const PackedHeader& header, std::int64_t offset,
                     std::byte* packed, void* stream) {
  require_16_bit(format.dtype);
  const TileGrid grid = grid_of(format.out, format.in);
  from_nm_kernel<<<blocks_for(grid), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const unsigned short*>(format.values), format.indices,
      static_cast<int>(format.out), static_cast<int>(format.in), header, offset,
      reinterpret_cast<unsigned char*>(packed), grid);
  check(cudaGetLastError(), "tiles_from_nm24");
}

void nm24_from_tiles(const std::byte* tiles, const PackedHeader& header, const Nm24Format& format,
                     std::byte* packed, void* stream) {
  require_16_bit(format.dtype);
  const TileGrid grid = grid_of(format.out, format.in);
  to_nm_kernel<<<blocks_for(grid), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const unsigned char*>(tiles), header,
      static_cast<unsigned short*>(format.values), format.indices,
      reinterpret_cast<unsigned char*>(packed), static_cast<int>(format.out),
      static_cast<int>(format.in), grid);
  check(cudaGetLastError(), "nm24_from_tiles");
}

}  // namespace gossamer::cuda
