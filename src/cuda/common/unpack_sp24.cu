// SPDX-License-Identifier: BSD-3-Clause
// Unpacks a 2:4 weight, out of tiles or the format nm: a thread reads 16 bytes of kept values and
// their nibbles, and writes 32 bytes of one row and its part of the mask. Bound: bytes. H200
// (2026-11-30), 8192×8192 in bfloat16, values and mask into memory that is there: 95 µs, 83 % of
// the bandwidth of a copy that moves as many bytes; in int8 77 µs, 73 %.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/chunk_24.cuh"
#include "cuda/common/runtime.h"
#include "cuda/pack_sp24.h"

namespace gossamer::cuda {
namespace {

using namespace pack24;

constexpr int kThreads = 256;

/// The 32 bytes of a dense row that a chunk stands for.
template <int kElementBytes>
__device__ __forceinline__ void expand(std::uint32_t (&words)[8], const std::uint32_t (&stored)[4],
                                       std::uint32_t meta) {
#pragma unroll
  for (int g = 0; g < Chunk<kElementBytes>::kGroups; ++g) {
    const std::uint32_t nibble = meta >> (4 * g) & 15;
    const std::uint32_t first = nibble & 3;
    const std::uint32_t second = nibble >> 2;
    if constexpr (kElementBytes == 2) {
      const std::uint64_t group = static_cast<std::uint64_t>(stored[g] & 0xffff) << (16 * first) |
                                  static_cast<std::uint64_t>(stored[g] >> 16) << (16 * second);
      words[2 * g] = static_cast<std::uint32_t>(group);
      words[2 * g + 1] = static_cast<std::uint32_t>(group >> 32);
    } else {
      const std::uint32_t two = stored[g / 2] >> (16 * (g % 2));
      words[g] = (two & 0xff) << (8 * first) | (two >> 8 & 0xff) << (8 * second);
    }
  }
}

/// Writes `kCount` bytes' worth of elements of a row, as many as there are columns.
template <int kElementBytes, int kWords>
__device__ __forceinline__ void store_row(unsigned char* row, std::int64_t column, std::int64_t in,
                                          const std::uint32_t (&words)[kWords], bool aligned) {
  constexpr int kElements = 4 * kWords / kElementBytes;
  if (aligned && column + kElements <= in) {
    auto* const to = reinterpret_cast<uint4*>(row + column * kElementBytes);
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      to[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (column + i >= in) break;
    const std::uint32_t value = words[i * kElementBytes / 4] >> (8 * (i * kElementBytes % 4));
    if constexpr (kElementBytes == 2) {
      reinterpret_cast<std::uint16_t*>(row)[column + i] = static_cast<std::uint16_t>(value);
    } else {
      row[column + i] = static_cast<unsigned char>(value);
    }
  }
}

struct Destination {
  unsigned char* values;
  std::int64_t stride;  // bytes
  unsigned char* kept;
  std::int64_t kept_stride;
  int in;
  bool aligned;
  bool kept_aligned;
};

template <int kElementBytes>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const __grid_constant__ Matrix from, const __grid_constant__ Destination to) {
  using C = Chunk<kElementBytes>;
  const Place place(static_cast<int>(threadIdx.x));
  const std::int64_t count = from.row_tiles * from.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / from.input_tiles * C::Tile::kRows + place.row;
    const std::int64_t chunk = t % from.input_tiles * C::kOfTile + place.quarter;
    const std::int64_t column = chunk * C::kInputs;
    if (row >= from.out || column >= to.in) continue;
    std::uint32_t stored[4];
    std::uint32_t meta;
    load_chunk<kElementBytes>(from, row, chunk, stored, meta);
    if (to.values != nullptr) {
      std::uint32_t words[8];
      expand<kElementBytes>(words, stored, meta);
      store_row<kElementBytes>(to.values + row * to.stride, column, to.in, words, to.aligned);
    }
    if (to.kept != nullptr) {
      std::uint32_t kept[C::kGroups];
#pragma unroll
      for (int g = 0; g < C::kGroups; ++g) kept[g] = bytes_of_bits(set_of(meta >> (4 * g) & 15));
      store_row<1>(to.kept + row * to.kept_stride, column, to.in, kept, to.kept_aligned);
    }
  }
}

template <int kElementBytes>
void launch(const PackedMatrix& packed, const DenseWeight& w, bool* kept, std::int64_t kept_stride,
            cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = 1 << 30;
  const Matrix from = matrix_of<kElementBytes>(packed);
  const std::int64_t stride = w.row_stride * kElementBytes;
  const Destination to{static_cast<unsigned char*>(w.values),
                       stride,
                       reinterpret_cast<unsigned char*>(kept),
                       kept_stride,
                       static_cast<int>(w.in),
                       is_aligned(w.values, stride),
                       is_aligned(kept, kept_stride)};
  const auto blocks =
      static_cast<unsigned>(std::min(from.row_tiles * from.input_tiles, kMostBlocks));
  unpack_kernel<kElementBytes><<<blocks, kThreads, 0, stream>>>(from, to);
  check(cudaGetLastError(), "unpack_sp24");
}

}  // namespace

void unpack_sp24(const PackedMatrix& from, const DenseWeight& w, bool* kept,
                 std::int64_t kept_stride, void* stream) {
  if (w.out == 0 || w.in == 0) return;
  auto* const on = static_cast<cudaStream_t>(stream);
  (dtype_bytes(from.dtype) == 2 ? launch<2> : launch<1>)(from, w, kept, kept_stride, on);
}

}  // namespace gossamer::cuda
