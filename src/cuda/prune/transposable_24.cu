// SPDX-License-Identifier: BSD-3-Clause
// Transposable 2:4 masks: a thread holds a 4×4 tile, sixteen registers; neighbouring threads read
// neighbouring 16 bytes of each row. Bound: 4 bytes read and 1 written a score.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/runtime.h"
#include "cuda/prune/prune.h"

namespace gossamer::cuda {
namespace {

#include "core/transposable_24.inl"

constexpr int kThreads = 256;
constexpr int kTile = 4;

struct TileGrid {
  std::int64_t rows;  // of a matrix
  std::int64_t cols;
  std::int64_t tile_rows;  // of a matrix
  std::int64_t tile_cols;
  std::int64_t tiles;  // of all
};

/// Four scores of a row from `col` on, zeros past the edges.
template <typename T, bool kWhole>
__device__ __forceinline__ void load_row(const T* row, std::int64_t col, std::int64_t cols,
                                         bool inside, float (&scores)[kTile]) {
  if constexpr (kWhole) {
    alignas(16) T values[kTile];
    constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int c = 0; c < kTile; c += kChunk) {
      *reinterpret_cast<uint4*>(values + c) = *reinterpret_cast<const uint4*>(row + col + c);
    }
#pragma unroll
    for (int c = 0; c < kTile; ++c) scores[c] = static_cast<float>(values[c]);
  } else {
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      scores[c] = inside && col + c < cols ? static_cast<float>(row[col + c]) : 0.0f;
    }
  }
}

/// Four bits as four bytes, the lowest bit first in memory.
__device__ __forceinline__ unsigned bytes_of(int bits) {
  return static_cast<unsigned>(bits) * 0x00204081u & 0x01010101u;
}

template <typename T, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    tiles_kernel(const T* scores, TileGrid grid, bool* mask, unsigned long long* bad_row) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       t < grid.tiles; t += step) {
    const std::int64_t panel = t / grid.tile_cols;
    const std::int64_t col = (t - panel * grid.tile_cols) * kTile;
    const std::int64_t batch = panel / grid.tile_rows;
    const std::int64_t first = (panel - batch * grid.tile_rows) * kTile;
    const std::int64_t row = batch * grid.rows + first;
    float tile[kTile][kTile];
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const bool inside = kWhole || first + r < grid.rows;
      load_row<T, kWhole>(scores + (row + r) * grid.cols, col, grid.cols, inside, tile[r]);
      // NaN and the infinities alone differ from themselves times zero.
      const float sum =
          tile[r][0] * 0.0f + tile[r][1] * 0.0f + tile[r][2] * 0.0f + tile[r][3] * 0.0f;
      if (sum != 0.0f) atomicMin(bad_row, static_cast<unsigned long long>(row + r));
    }
    const int code = best_tile_24<int>(tile);
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      bool* const to = mask + (row + r) * grid.cols + col;
      if constexpr (kWhole) {
        *reinterpret_cast<unsigned*>(to) = bytes_of(code >> (kTile * r) & 15);
      } else if (first + r < grid.rows) {
        for (int c = 0; c < kTile && col + c < grid.cols; ++c) {
          to[c] = (code >> (kTile * r + c) & 1) != 0;
        }
      }
    }
  }
}

template <typename T>
void launch(const TileScores& s, bool* mask, std::uint64_t* bad_row, cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = 1 << 30;
  TileGrid grid{s.rows, s.cols, (s.rows + kTile - 1) / kTile, (s.cols + kTile - 1) / kTile, 0};
  grid.tiles = s.batch * grid.tile_rows * grid.tile_cols;
  const bool is_whole = s.rows % kTile == 0 && s.cols % kTile == 0 &&
                        reinterpret_cast<std::uintptr_t>(s.scores) % 16 == 0 &&
                        reinterpret_cast<std::uintptr_t>(mask) % 4 == 0;
  const auto blocks =
      static_cast<unsigned>(std::min((grid.tiles + kThreads - 1) / kThreads, kMostBlocks));
  (is_whole ? tiles_kernel<T, true> : tiles_kernel<T, false>)<<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(s.scores), grid, mask, reinterpret_cast<unsigned long long*>(bad_row));
}

}  // namespace

void transposable_24(const TileScores& scores, bool* mask, std::uint64_t* bad_row, void* stream) {
  auto* const on = static_cast<cudaStream_t>(stream);
  check(cudaMemsetAsync(bad_row, 0xff, sizeof(*bad_row), on), "cudaMemsetAsync");
  if (scores.batch == 0 || scores.rows == 0 || scores.cols == 0) return;
  (scores.dtype == DType::kFloat64 ? launch<double> : launch<float>)(scores, mask, bad_row, on);
  check(cudaGetLastError(), "transposable_24");
}

}  // namespace gossamer::cuda
