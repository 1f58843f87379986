// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_epilogue.cuh"
#include "cuda/sm90/sm90_gemm_shape.cuh"
#include "cuda/sm90/tensor_map.h"
#include "cuda/sm90/x_tile.cuh"

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

/// Walks the tiles in groups of kGroup token blocks, all row blocks inside, so that the X of a
/// group and the W that streams past stay in L2 together.
struct TileCursor {
  static constexpr int kGroup = 8;
  int row_cluster;
  int token_block;

  __device__ __forceinline__ TileCursor(unsigned tile, unsigned row_clusters, int token_blocks) {
    // Divisions are slow, and all warps wait for them between two tiles: one will do.
    const unsigned group = tile / kGroup / row_clusters;
    const unsigned inside = tile - group * kGroup * row_clusters;
    const int first = static_cast<int>(group) * kGroup;
    const int width = token_blocks - first;
    if (width >= kGroup) {
      token_block = first + static_cast<int>(inside % kGroup);
      row_cluster = static_cast<int>(inside / kGroup);
    } else {
      row_cluster = static_cast<int>(inside / width);
      token_block = first + static_cast<int>(inside) - row_cluster * width;
    }
  }
};

/// What a block does in one round, and the rounds there are.
template <typename T>
struct GemmRounds {
  const GemmParams<T>& p;
  int rank;      // in the cluster
  int sharing;   // log2 of the blocks that share X; they are a power of two, like parts
  int parts;     // log2 of the parts of the inputs
  int clusters;  // of the launch
  int tiles;     // for the blocks that share X together
  int whole;     // of them in rounds that keep all clusters busy, or all
  int end;       // of the numbers that work_at() takes, in steps of `clusters`

  struct Work {
    int row_block;
    int token_block;
    bool is_alone;  // the blocks of the cluster divide its inputs
    int part;
    int split;
    int first;  // tile of inputs
    int steps;
  };

  __device__ __forceinline__ GemmRounds(const GemmParams<T>& params, int cluster_rank)
      : p(params), rank(cluster_rank) {
    sharing = __popc(p.shared_by - 1);
    parts = __popc(p.split - 1);
    clusters = static_cast<int>(gridDim.x) >> (sharing + parts);
    tiles = (p.row_blocks >> sharing) * p.token_blocks;
    whole = p.splits_last_round ? tiles / clusters * clusters : tiles;
    end = whole + ((tiles - whole) << sharing);
  }

  __device__ __forceinline__ Work work_at(int number) const {
    Work work;
    work.is_alone = number >= whole;
    const int among = number - whole;
    const int tile = work.is_alone ? whole + (among >> sharing) : number;
    const TileCursor at(tile, p.row_blocks >> sharing, p.token_blocks);
    work.token_block = at.token_block;
    work.part = work.is_alone ? rank : rank >> sharing;
    const int log_split = work.is_alone ? sharing : parts;
    work.split = 1 << log_split;
    work.row_block =
        (at.row_cluster << sharing) + ((work.is_alone ? among : rank) & (p.shared_by - 1));
    work.first = (p.input_tiles * work.part) >> log_split;
    work.steps = ((p.input_tiles * (work.part + 1)) >> log_split) - work.first;
    return work;
  }
};

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    gemm_sp24(const __grid_constant__ CUtensorMap x_map,
              const __grid_constant__ CUtensorMap x_tail_map,
              const __grid_constant__ CUtensorMap y_map, const __grid_constant__ GemmParams<T> p,
              const __grid_constant__ CUtensorMap w_map) {
  using Sum = typename Element<T>::Sum;
  constexpr int kInputs = Element<T>::kInputs;
  constexpr int kTokens = Shape::kTokens;
  constexpr int kStages = Shape::kStages;
  constexpr int kRowTiles = Shape::kRowTiles;
  constexpr int kWarpgroups = Shape::kWarpgroups;
  constexpr int kXBytes = Shape::kXBytes;
  constexpr int kWBytes = Shape::kWBytes;

  extern __shared__ unsigned char raw[];
  unsigned char* const shared =
      reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) & ~1023ull);
  constexpr int kPiecesBytes = Shape::kBuffers * kWarpgroups * Shape::kPieceBytes;
  const std::uint32_t pieces = shared_address(shared);
  const std::uint32_t x_stages = pieces + kPiecesBytes;
  const std::uint32_t w_stages = x_stages + kStages * kXBytes;
  const std::uint32_t full = w_stages + kStages * kWBytes;
  const std::uint32_t empty = full + kStages * 8;

  // Blocks of a cluster: `shared_by` that need the same X, times `split` that share the tile.
  const int rank = cluster_rank();
  const GemmRounds<T> rounds(p, rank);
  const int row_rank = rank & (p.shared_by - 1);
  const int first_peer = rank - row_rank;
  const int cluster = static_cast<int>(blockIdx.x) >> (rounds.sharing + rounds.parts);

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i * 8, Shape::kXByTma ? 1 : 1 + 4);
      barrier_init(empty + i * 8, 4 * kWarpgroups * p.shared_by);
    }
    barrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  launch_dependents();

  if (warpgroup == 0) {
    // --- Loads ---
    give_registers<Shape::kLoaderRegisters>();
    int stage = 0;
    std::uint32_t parity = 1;
    const auto load_weights = [&](int s, int row_tile, int k) {
      constexpr int kLines = Shape::kTile / kTileLine;
      tiles_load(w_stages + s * kWBytes, &w_map, k * kLines, row_tile, full + s * 8);
    };
    const auto x_blocks = static_cast<std::uint16_t>(((1 << p.shared_by) - 1) << first_peer);
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
      const std::uint32_t to = x_stages + s * kXBytes;
      const std::uint32_t barrier = full + s * 8;
      const bool is_shared = p.shared_by > 1 && !is_alone;
      if (!is_full(token)) {
        const int begin = is_shared ? row_rank * p.tail_share : 0;
        const int end = is_shared ? begin + p.tail_share : p.shared_by * p.tail_share;
        for (int row = begin; row < end; row += p.tail_share) {
          const int from = token + row < p.epilogue.tokens ? token + row : 0;
          if (is_shared) {
            tensor_load_multicast(to + row * 128, &x_tail_map, k * kInputs, from, barrier,
                                  x_blocks);
          } else {
            tensor_load(to + row * 128, &x_tail_map, k * kInputs, from, barrier);
          }
        }
      } else if (is_shared) {
        const int row = row_rank * x_share;
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
      if (p.weight_is_constant && thread == 0 && cluster < rounds.end) {
        const auto work = rounds.work_at(cluster);
        const int bytes = expected(work.token_block * kTokens);
        for (ahead = 0; ahead < min(kStages, work.steps); ++ahead) {
          barrier_arrive_expect(full + ahead * 8, bytes);
          load_weights(ahead, work.row_block * Shape::kWTiles, work.first + ahead);
        }
      }
      wait_for_predecessors();
      for (int i = cluster; i < rounds.end; i += rounds.clusters) {
        const auto work = rounds.work_at(i);
        const int row_tile = work.row_block * Shape::kWTiles;
        const int token = work.token_block * kTokens;
        const int bytes = expected(token);
        for (int k = work.first; k < work.first + work.steps; ++k) {
          barrier_wait(empty + stage * 8, parity);
          const std::uint32_t barrier = full + stage * 8;
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
            fill_x_tile<T, kTokens>(shared + kPiecesBytes + stage * kXBytes, p.x, p.x_stride, token,
                                    k * kInputs, p.epilogue.tokens, p.in, thread, 128);
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
    __syncwarp();
  } else {
    // --- Products ---
    take_registers<Shape::kRegisters>();
    wait_for_predecessors();
    const int group = warpgroup - 1;
    const int lane = thread % 32;
    int stage = 0;
    std::uint32_t parity = 0;
    // A stage goes back to all blocks that loaded a part of it.
    const bool releases = lane < p.shared_by;
    auto* const my_scales = reinterpret_cast<float*>(
        shared + (empty + kStages * 8 - shared_address(shared)) + group * Shape::kScaleBytes);
    PieceWriter<T, Shape> writer(
        p, &y_map, shared, pieces + group * Shape::kBuffers * Shape::kPieceBytes, group, thread);

    for (int i = cluster; i < rounds.end; i += rounds.clusters) {
      const auto work = rounds.work_at(i);
      const int steps = work.steps;
      // A block that works alone hands its stages back to itself, as often as they are counted.
      const int released_rank = work.is_alone ? rank : first_peer + lane;
      const GemmPlace place{.group = group,
                            .thread = thread,
                            .split = work.split,
                            .part = work.part,
                            .first_peer = work.is_alone ? 0 : row_rank,
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
        if (releases) barrier_arrive_peer(empty + s * 8, released_rank);
      };
      // The metadata registers are the instruction's until it has ended: two sets take turns.
      const auto step = [&](Metadata<T>(&meta)[kRowTiles]) {
        barrier_wait(full + stage * 8, parity);
        const std::uint32_t w = w_stages + stage * kWBytes + group * kRowTiles * Shape::kTile;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          meta[r] = made_legal(load_metadata<T>(w + r * Shape::kTile, thread));
        const std::uint64_t b = b_descriptor(x_stages + stage * kXBytes);
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

      finish_tile<T, Shape>(d, p, place, terms, x_stages, my_scales, writer);
    }
    if (thread == 0) tensor_store_wait();
  }
  const bool exchanges =
      p.split > 1 || (rounds.whole < rounds.end && rounds.whole + cluster < rounds.end);
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
