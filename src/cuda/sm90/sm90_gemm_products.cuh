// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_epilogue.cuh"
#include "cuda/sm90/sm90_gemm_rounds.cuh"
#include "cuda/sm90/sm90_gemm_shape.cuh"

// The multiplying warpgroups of sm90_gemm_sp24.cuh.
namespace gossamer::cuda::sm90 {

/// Multiplies the stages of all tiles of a block as they land, and writes the results of each tile.
template <typename T, typename Shape>
__device__ __forceinline__ void multiply_stages(const CUtensorMap& y_map, const GemmParams<T>& p,
                                                const GemmRounds<T>& rounds, const GemmBlock& block,
                                                int group, int thread) {
  using Sum = typename Element<T>::Sum;
  constexpr int kTokens = Shape::kTokens;
  constexpr int kStages = Shape::kStages;
  constexpr int kRowTiles = Shape::kRowTiles;
  constexpr int kWarpgroups = Shape::kWarpgroups;
  constexpr int kXBytes = Shape::kXBytes;
  constexpr int kWBytes = Shape::kWBytes;
  wait_for_predecessors();
  const int lane = thread % 32;
  int stage = 0;
  std::uint32_t parity = 0;
  // A stage goes back to all blocks that loaded a part of it.
  const bool releases = lane < p.shared_by;
  auto* const my_scales = reinterpret_cast<float*>(
      block.shared + (block.empty + kStages * 8 - shared_address(block.shared)) +
      group * Shape::kScaleBytes);
  PieceWriter<T, Shape> writer(p, &y_map, block.shared,
                               block.pieces + group * Shape::kBuffers * Shape::kPieceBytes, group,
                               thread);

  for (int i = block.cluster; i < rounds.end; i += rounds.clusters) {
    const auto work = rounds.work_at(i);
    const int steps = work.steps;
    // A block that works alone hands its stages back to itself, as often as they are counted.
    const int released_rank = work.is_alone ? block.rank : block.first_peer + lane;
    const GemmPlace place{.group = group,
                          .thread = thread,
                          .split = work.split,
                          .part = work.part,
                          .first_peer = work.is_alone ? 0 : block.row_rank,
                          .peer_stride = work.is_alone ? 1 : p.shared_by,
                          .first_row = (work.row_block * kWarpgroups + group) * kRowTiles * 64,
                          .first_token = work.token_block * kTokens};
    TileTerms<T, Shape> terms;
    if constexpr (!Shape::kIsFull) terms.load(p, place);
    Sum d[kRowTiles][kTokens / 2];
    [[maybe_unused]] Sum promoted[kRowTiles][Shape::kPromotes ? kTokens / 2 : 1] = {};
    int previous = -1;
    int accumulate = 0;
    const auto release = [&](int s) {
      // Warp by warp, so that what each has read of the stage itself is ordered before it.
      __syncwarp();
      if (releases) barrier_arrive_peer(block.empty + s * 8, released_rank);
    };
    // The metadata registers are the instruction's until it has ended: two sets take turns.
    const auto step = [&](Metadata<T>(&meta)[kRowTiles]) {
      barrier_wait(block.full + stage * 8, parity);
      const std::uint32_t w = block.w_stages + stage * kWBytes + group * kRowTiles * Shape::kTile;
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
        meta[r] = made_legal(load_metadata<T>(w + r * Shape::kTile, thread));
      const std::uint64_t b = b_descriptor(block.x_stages + stage * kXBytes);
      wgmma_fence();
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        multiply_tile<T>(d[r], a_descriptor(w + r * Shape::kTile), b, meta[r], accumulate);
      }
      wgmma_commit();
      accumulate = 1;
      wgmma_wait<1>();
      if (previous >= 0) release(previous);
      previous = stage;
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    };
    const auto promote = [&] {
      if constexpr (Shape::kPromotes) {
        wgmma_wait<0>();
        accumulate = 0;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          settle(d[r]);
#pragma unroll
          for (int j = 0; j < kTokens / 2; ++j) promoted[r][j] += d[r][j];
        }
      }
    };
    Metadata<T> even[kRowTiles];
    Metadata<T> odd[kRowTiles];
    int k = 0;
    for (; k + 2 <= steps; k += 2) {
      step(even);
      step(odd);
      promote();
    }
    if (k < steps) {
      step(even);
      promote();
    }
    if constexpr (Shape::kIsFull) terms.load(p, place);
    wgmma_wait<0>();
    release(previous);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if constexpr (Shape::kPromotes) {
#pragma unroll
        for (int j = 0; j < kTokens / 2; ++j) d[r][j] = promoted[r][j];
      } else {
        settle(d[r]);
      }
    }

    finish_tile<T, Shape>(d, p, place, terms, block.x_stages, my_scales, writer);
  }
  if (thread == 0) tensor_store_wait();
}

}  // namespace gossamer::cuda::sm90
