// SPDX-License-Identifier: BSD-3-Clause
// A 2:4 weight from tiles to the format nm or back: a thread moves 16 bytes of kept values and
// their nibbles. Bound: bytes, those of the packed weight read and written. Not measured alone: it
// runs once where a weight is saved, loaded or moved.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/chunk_24.cuh"
#include "cuda/common/runtime.h"
#include "cuda/pack_sp24.h"

namespace gossamer::cuda {
namespace {

using namespace pack24;

constexpr int kThreads = 256;

template <int kElementBytes>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const __grid_constant__ Matrix from, const __grid_constant__ PackedHeader header,
                   unsigned char* packed, const __grid_constant__ Matrix to) {
  using C = Chunk<kElementBytes>;
  store_header(header, packed);
  const Place place(static_cast<int>(threadIdx.x));
  const std::int64_t count = to.row_tiles * to.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / to.input_tiles * C::Tile::kRows + place.row;
    const std::int64_t chunk = t % to.input_tiles * C::kOfTile + place.quarter;
    std::uint32_t stored[4];
    std::uint32_t meta;
    load_chunk<kElementBytes>(from, row, chunk, stored, meta);
    store_chunk<kElementBytes>(to, row, chunk, stored, meta);
  }
}

template <int kElementBytes>
void launch(const PackedMatrix& from, const PackedHeader& header, std::byte* packed,
            const PackedMatrix& packed_to, cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = 1 << 30;
  const Matrix to = matrix_of<kElementBytes>(packed_to);
  const auto blocks = static_cast<unsigned>(std::min(to.row_tiles * to.input_tiles, kMostBlocks));
  convert_kernel<kElementBytes><<<blocks, kThreads, 0, stream>>>(
      matrix_of<kElementBytes>(from), header, reinterpret_cast<unsigned char*>(packed), to);
  check(cudaGetLastError(), "convert_sp24");
}

}  // namespace

void convert_sp24(const PackedMatrix& from, const PackedHeader& header, std::byte* packed,
                  const PackedMatrix& to, void* stream) {
  (dtype_bytes(from.dtype) == 2 ? launch<2> : launch<1>)(from, header, packed, to,
                                                         static_cast<cudaStream_t>(stream));
}

}  // namespace gossamer::cuda
