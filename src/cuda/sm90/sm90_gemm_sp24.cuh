// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_loads.cuh"
#include "cuda/sm90/sm90_gemm_products.cuh"
#include "cuda/sm90/sm90_gemm_rounds.cuh"
#include "cuda/sm90/sm90_gemm_shape.cuh"

// Y = act(X·Wᵀ + bias + residual) for many tokens, W 2:4.
//
//                 tokens                     a block: kRows outputs × kTokens tokens, persistent;
//            ┌──────────────┐                one warpgroup loads, two multiply, each half the rows
//   kRows    │ block 0      │ ─┐
//            ├──────────────┤  │ cluster:    stage: a tile of inputs, by the copy engine; blocks of
//   kRows    │ block 1      │ ─┘ same X      a cluster each load a part of X, multicast to all
//            └──────────────┘
//
// Two bounds, in clocks a stage of 64 inputs of 16 bits, measured on an H200 (2026-11-30):
//
//   outputs × tokens                              128×256   256×192   128×128
//   wgmma.sp, 4 · (tokens / 2 + 16) · kRowTiles       576       896       320
//   bytes that land, 64 a clock                       656       672       400
//   the loop as it runs                               716       975       468
//
// So tiles of 128 outputs wait for their bytes, wherever these come from; those of 256 do not.
//
// Where there are fewer tiles than multiprocessors, the inputs can be divided among `split` blocks
// of the cluster too. Each block then has one tile; the partial sums are exchanged through shared
// memory of the cluster, each block finishes its part of the tokens, in the order of ranks. Pairs
// of blocks do so too where their last round would leave at least half of the clusters idle.
namespace gossamer::cuda::sm90 {

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    gemm_sp24(const __grid_constant__ CUtensorMap x_map,
              const __grid_constant__ CUtensorMap x_tail_map,
              const __grid_constant__ CUtensorMap y_map, const __grid_constant__ GemmParams<T> p,
              const __grid_constant__ CUtensorMap w_map) {
  constexpr int kStages = Shape::kStages;
  constexpr int kWarpgroups = Shape::kWarpgroups;

  extern __shared__ unsigned char raw[];
  GemmBlock block;
  block.shared =
      reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) & ~1023ull);
  block.pieces = shared_address(block.shared);
  block.x_stages = block.pieces + Shape::kPiecesBytes;
  block.w_stages = block.x_stages + kStages * Shape::kXBytes;
  block.full = block.w_stages + kStages * Shape::kWBytes;
  block.empty = block.full + kStages * 8;

  // Blocks of a cluster: `shared_by` that need the same X, times `split` that share the tile.
  block.rank = cluster_rank();
  const GemmRounds<T> rounds(p, block.rank);
  block.row_rank = block.rank & (p.shared_by - 1);
  block.first_peer = block.rank - block.row_rank;
  block.cluster = static_cast<int>(blockIdx.x) >> (rounds.sharing + rounds.parts);

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(block.full + i * 8, Shape::kXByTma ? 1 : 1 + 4);
      barrier_init(block.empty + i * 8, 4 * kWarpgroups * p.shared_by);
    }
    barrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  launch_dependents();

  if (warpgroup == 0) {
    give_registers<Shape::kLoaderRegisters>();
    load_stages<T, Shape>(x_map, x_tail_map, w_map, p, rounds, block, thread);
    __syncwarp();
  } else {
    take_registers<Shape::kRegisters>();
    multiply_stages<T, Shape>(y_map, p, rounds, block, warpgroup - 1, thread);
  }
  const bool exchanges =
      p.split > 1 || (rounds.whole < rounds.end && rounds.whole + block.cluster < rounds.end);
  if (exchanges && warpgroup == 0) {
    // The loading warps take part in the two exchanges of the others.
    cluster_arrive();
    cluster_wait();
    cluster_arrive();
    cluster_wait();
  }
  // No block leaves while another may still signal its barriers.
  cluster_arrive();
  cluster_wait();
}

}  // namespace gossamer::cuda::sm90
