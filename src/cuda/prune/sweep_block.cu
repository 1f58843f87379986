// SPDX-License-Identifier: BSD-3-Clause
// SparseGPT's sweep inside a block of columns: a warp a row. The block's factor lies in shared
// memory once a block of threads, each warp's row of weights beside it.
//
//   for every column j from left to right:   e = w_j / U_jj      all lanes the same
//                                            w_i −= e · U_ji     columns i > j over the lanes
//
// Products and differences are rounded one by one, as the core's are: inside a block both give the
// same bits. Bound: the latency of `width` dependent steps.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/runtime.h"
#include "cuda/prune/prune.h"

namespace gossamer::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kLanes;
constexpr int kMaxGroup = 64;

/// One warp's row.
struct RowMemory {
  double scores[kMaxGroup];
  float weight[kMaxSweptColumns];
  float owed[kMaxSweptColumns];
  unsigned char kept[kMaxSweptColumns];
};

constexpr std::size_t shared_bytes(int width) {
  return kWarps * sizeof(RowMemory) + static_cast<std::size_t>(width * width) * sizeof(float);
}

/// Columns of the block, as its threads see them.
struct Factor {
  const float* values;  // [width, width], shared
  int width;
  __device__ __forceinline__ const float* row(int col) const { return values + col * width; }
  __device__ __forceinline__ float pivot(int col) const { return values[col * width + col]; }
};

/// One past the last column of the group that `col` opens.
__device__ __forceinline__ int group_end(const SweptBlock& block, int col) {
  const std::int64_t at = block.begin + col;
  const std::int64_t segment_end = (at / block.segment + 1) * block.segment;
  return static_cast<int>(min(at + block.m, segment_end) - block.begin);
}

/// Keeps the N highest w²/U_jj² of a group, the lower column among equals.
__device__ __forceinline__ void select_group(RowMemory& row, const Factor& factor, int n, int begin,
                                             int end, int lane) {
  for (int i = begin + lane; i < end; i += kLanes) {
    const double ratio = static_cast<double>(row.weight[i]) / factor.pivot(i);
    row.scores[i - begin] = __dmul_rn(ratio, ratio);
  }
  __syncwarp();
  for (int i = lane; i < end - begin; i += kLanes) {
    const double own = row.scores[i];
    int above = 0;
    for (int k = 0; k < end - begin; ++k) {
      const double other = row.scores[k];
      above += other > own || (other == own && k < i) ? 1 : 0;
    }
    row.kept[begin + i] = above < n ? 1 : 0;
  }
  __syncwarp();
}

__device__ __forceinline__ void sweep_row(const SweptBlock& block, const Factor& factor,
                                          RowMemory& row, int lane) {
  int next_group = block.m == 0 ? block.width : 0;
  for (int col = 0; col < block.width; ++col) {
    if (col == next_group) {
      next_group = group_end(block, col);
      select_group(row, factor, block.n, col, next_group, lane);
    }
    if (row.kept[col] != 0) {
      if (lane == 0) row.owed[col] = 0.0f;
      continue;
    }
    const float error = __fdiv_rn(row.weight[col], factor.pivot(col));
    if (lane == 0) row.owed[col] = error;
    const float* const u = factor.row(col);
    for (int i = col / kLanes * kLanes + lane; i < block.width; i += kLanes) {
      if (i > col) row.weight[i] = __fsub_rn(row.weight[i], __fmul_rn(error, u[i]));
    }
    __syncwarp();
  }
}

__global__ void __launch_bounds__(kThreads) sweep_kernel(const __grid_constant__ SweptBlock block) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* const rows = reinterpret_cast<RowMemory*>(shared);
  auto* const values = reinterpret_cast<float*>(shared + kWarps * sizeof(RowMemory));
  for (int i = static_cast<int>(threadIdx.x); i < block.width * block.width; i += kThreads) {
    values[i] = block.factor[i / block.width * block.factor_stride + i % block.width];
  }
  __syncthreads();
  const Factor factor{values, block.width};
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  RowMemory& row = rows[warp];
  for (std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp; r < block.rows;
       r += static_cast<std::int64_t>(gridDim.x) * kWarps) {
    float* const weight = block.weight + r * block.weight_stride;
    bool* const mask = block.mask + r * block.mask_stride;
    for (int i = lane; i < block.width; i += kLanes) {
      row.weight[i] = weight[i];
      if (block.m == 0) row.kept[i] = mask[i] ? 1 : 0;
    }
    __syncwarp();
    sweep_row(block, factor, row, lane);
    __syncwarp();
    for (int i = lane; i < block.width; i += kLanes) {
      weight[i] = row.kept[i] != 0 ? row.weight[i] : 0.0f;
      if (block.m != 0) mask[i] = row.kept[i] != 0;
      block.owed[r * block.width + i] = row.owed[i];
    }
    __syncwarp();
  }
}

/// Once a device: more shared memory than a kernel has unasked.
void allow_shared_memory() {
  static PerDevice allowed;
  allowed.get(current_device(), [] {
    constexpr auto kBytes = static_cast<int>(shared_bytes(kMaxSweptColumns));
    check(cudaFuncSetAttribute(sweep_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "cudaFuncSetAttribute");
    return kBytes;
  });
}

}  // namespace

void sweep_block(const SweptBlock& block, void* stream) {
  constexpr std::int64_t kMostBlocks = 1 << 20;
  if (block.rows == 0 || block.width == 0) return;
  allow_shared_memory();
  const auto blocks =
      static_cast<unsigned>(std::min((block.rows + kWarps - 1) / kWarps, kMostBlocks));
  sweep_kernel<<<blocks, kThreads, shared_bytes(block.width), static_cast<cudaStream_t>(stream)>>>(
      block);
  check(cudaGetLastError(), "sweep_block");
}

}  // namespace gossamer::cuda
