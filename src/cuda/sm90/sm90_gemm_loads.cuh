// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_rounds.cuh"
#include "cuda/sm90/sm90_gemm_shape.cuh"
#include "cuda/sm90/tensor_map.h"
#include "cuda/sm90/x_tile.cuh"

// The loading warpgroup of sm90_gemm_sp24.cuh.
namespace gossamer::cuda::sm90 {

/// Brings the stages of all tiles of a block, W and X, as fast as places for them become free. One
/// thread asks the copy engine; where Shape::kXByTma is false, 128 threads copy X.
template <typename T, typename Shape>
__device__ __forceinline__ void load_stages(const CUtensorMap& x_map, const CUtensorMap& x_tail_map,
                                            const CUtensorMap& w_map, const GemmParams<T>& p,
                                            const GemmRounds<T>& rounds, const GemmBlock& block,
                                            int thread) {
  constexpr int kInputs = Element<T>::kInputs;
  constexpr int kTokens = Shape::kTokens;
  constexpr int kStages = Shape::kStages;
  constexpr int kXBytes = Shape::kXBytes;
  constexpr int kWBytes = Shape::kWBytes;
  int stage = 0;
  std::uint32_t parity = 1;
  const auto load_weights = [&](int s, int row_tile, int k) {
    constexpr int kLines = Shape::kTile / kTileLine;
    tiles_load(block.w_stages + s * kWBytes, &w_map, k * kLines, row_tile, block.full + s * 8);
  };
  const auto x_blocks = static_cast<std::uint16_t>(((1 << p.shared_by) - 1) << block.first_peer);
  // The last tile of tokens may hold fewer. Boxes that reach past the last token are filled
  // slowly, so smaller ones come for it; what lies behind them in a stage keeps whatever was
  // there, for nobody reads its products. Each block of a cluster loads a part that all need,
  // other tokens once more where none are left for it: a block that did without its peers'
  // loads could hand back a stage for the second time before a peer's first hand-back arrived,
  // and barriers count arrivals without asking whose they are.
  // Divided here: a division a stage in the one thread that loads costs a quarter of all.
  const int x_share = kTokens >> rounds.sharing;
  const auto is_full = [&](int token) { return token + kTokens <= p.epilogue.tokens; };
  const auto load_x = [&](int s, int token, int k, bool is_alone) {
    const std::uint32_t to = block.x_stages + s * kXBytes;
    const std::uint32_t barrier = block.full + s * 8;
    const bool is_shared = p.shared_by > 1 && !is_alone;
    if (!is_full(token)) {
      const int begin = is_shared ? block.row_rank * p.tail_share : 0;
      const int end = is_shared ? begin + p.tail_share : p.shared_by * p.tail_share;
      for (int row = begin; row < end; row += p.tail_share) {
        const int from = token + row < p.epilogue.tokens ? token + row : 0;
        if (is_shared) {
          tensor_load_multicast(to + row * 128, &x_tail_map, k * kInputs, from, barrier, x_blocks);
        } else {
          tensor_load(to + row * 128, &x_tail_map, k * kInputs, from, barrier);
        }
      }
    } else if (is_shared) {
      const int row = block.row_rank * x_share;
      tensor_load_multicast(to + row * 128, &x_map, k * kInputs, token + row, barrier, x_blocks);
    } else {
      for (int row = 0; row < kTokens; row += x_share) {
        tensor_load(to + row * 128, &x_map, k * kInputs, token + row, barrier);
      }
    }
  };
  const auto expected = [&](int token) {
    const int tokens = is_full(token) ? kTokens : p.shared_by * p.tail_share;
    return kWBytes + (Shape::kXByTma ? tokens * 128 : 0);
  };
  if (!Shape::kXByTma || thread == 0) {
    // The first weights travel while the previous kernel ends.
    int ahead = 0;
    if (p.weight_is_constant && thread == 0 && block.cluster < rounds.end) {
      const auto work = rounds.work_at(block.cluster);
      const int bytes = expected(work.token_block * kTokens);
      for (ahead = 0; ahead < min(kStages, work.steps); ++ahead) {
        barrier_arrive_expect(block.full + ahead * 8, bytes);
        load_weights(ahead, work.row_block * Shape::kWTiles, work.first + ahead);
      }
    }
    wait_for_predecessors();
    for (int i = block.cluster; i < rounds.end; i += rounds.clusters) {
      const auto work = rounds.work_at(i);
      const int row_tile = work.row_block * Shape::kWTiles;
      const int token = work.token_block * kTokens;
      const int bytes = expected(token);
      for (int k = work.first; k < work.first + work.steps; ++k) {
        barrier_wait(block.empty + stage * 8, parity);
        const std::uint32_t barrier = block.full + stage * 8;
        bool w_is_next = false;
        if (thread == 0) {
          if (ahead > 0) {
            --ahead;
          } else {
            barrier_arrive_expect(barrier, bytes);
            w_is_next = true;
            // X that threads copy takes long: W is asked for before it, otherwise behind it.
            if (!Shape::kXByTma) load_weights(stage, row_tile, k);
          }
        }
        if constexpr (Shape::kXByTma) {
          load_x(stage, token, k, work.is_alone);
        } else {
          fill_x_tile<T, kTokens>(block.shared + Shape::kPiecesBytes + stage * kXBytes, p.x,
                                  p.x_stride, token, k * kInputs, p.epilogue.tokens, p.in, thread,
                                  128);
          fence_async_proxy();
          __syncwarp();
          if (thread % 32 == 0) barrier_arrive(barrier);
        }
        if (Shape::kXByTma && w_is_next) load_weights(stage, row_tile, k);
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
}

}  // namespace gossamer::cuda::sm90
