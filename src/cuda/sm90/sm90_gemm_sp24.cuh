// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_epilogue.cuh"
#include "cuda/sm90/tensor_map.h"
#include "cuda/sm90/x_tile.cuh"

// Y = act(X·Wᵀ + bias + residual) for many tokens, W 2:4.
//
//                 tokens                     a block: kRows outputs × kTokens tokens, persistent;
//            ┌─────────┬─────────┐           one warpgroup loads, two multiply, each half the rows
//   kRows    │ block 0 │ block 2 │           stage: a tile of inputs, by the copy engine
//            ├─────────┼─────────┤           cluster: blocks below each other need the same X,
//   kRows    │ block 1 │ block 3 │           blocks beside each other the same W; each loads a part
//            └─────────┴─────────┘           and the copy engine gives it to all that need it
//
// Bound: wgmma.sp with both operands in shared memory reaches 8/9 of the sparse peak at 256 tokens
// (6/7 at 192), if data arrives: per stage 64 inputs, 32 KB of X and 9 KB of W for 2·128·256·64
// dense-equivalent operations. All blocks together get about 7 TB/s from L2, which is less: the
// multicasts divide what X and W cost of it by the sides of the cluster.
//
// Where there are fewer tiles than multiprocessors, the inputs can be divided among `split` blocks
// of the cluster too. Each block then has one tile; the partial sums are exchanged through shared
// memory of the cluster, each block finishes its part of the tokens, in the order of ranks.
namespace gossamer::cuda::sm90 {

template <typename T>
struct GemmParams {
  const T* x;  // read where the kernel does not use the copy engine for X
  void* y;
  std::int64_t x_stride;
  std::int64_t y_stride;
  Epilogue<T> epilogue;
  int in;
  int input_tiles;
  int row_blocks;      // blocks along the rows, a multiple of cluster_rows
  int token_blocks;    // likewise of cluster_tokens
  int cluster_rows;    // blocks that share X
  int cluster_tokens;  // blocks that share W
  int split;
  bool y_by_tma;
  bool weight_is_constant;  // may be read before the previous kernel has ended

  /// Blocks of a cluster that compute the same part of the inputs.
  __device__ __forceinline__ int part_blocks() const { return cluster_rows * cluster_tokens; }
};

/// The compile-time shape of a block.
template <typename T, int kRowTiles_, int kTokens_, int kBuffers_, bool kXByTma_ = true,
          bool kPromotes_ = false>
struct GemmShape {
  static constexpr int kRowTiles = kRowTiles_;  // tiles of 64 rows a warpgroup
  static constexpr int kTokens = kTokens_;
  static constexpr int kBuffers = kBuffers_;  // pieces of results that wait to be written
  static constexpr bool kXByTma = kXByTma_;
  // fp8 products are summed in fewer bits than float32 has: two stages at a time, then in float32.
  static constexpr bool kPromotes = kPromotes_;

  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * (1 + kWarpgroups);
  static constexpr int kWTiles = kRowTiles * kWarpgroups;
  static constexpr int kRows = 64 * kWTiles;
  static constexpr int kTile = Element<T>::Tile::kBytes;
  static constexpr int kWBytes = kTile * kWTiles;
  static constexpr int kXBytes = kTokens * 128;
  // A warpgroup turns its result around in pieces of 64 rows by kPiece tokens.
  static constexpr int kPiece = kTokens >= 192 ? 32 : 16;
  static constexpr int kPieces = kTokens / kPiece;
  static constexpr int kPieceBytes = kPiece * 128;

  // As many stages as fit.
  static constexpr int kMostShared = 232448;
  static constexpr int kFixedBytes = 1024 + kBuffers * kWarpgroups * kPieceBytes;
  static constexpr int kFitting = (kMostShared - kFixedBytes) / (kXBytes + kWBytes + 2 * 8);
  static constexpr int kStages = kFitting < 14 ? kFitting : 14;
  static constexpr int kSharedBytes = kFixedBytes + kStages * (kXBytes + kWBytes + 2 * 8);
  static_assert(kStages >= 4 && kBuffers >= 2 && kTokens % kPiece == 0);

  /// Whether the sums of `split` parts of the inputs fit where the stages of X were.
  static constexpr bool can_split(int split) {
    return split == 1 ||
           split * ((kPieces + split - 1) / split) * kPiece * kRows * 4 <= kStages * kXBytes;
  }
};

/// Walks the tiles of a cluster in groups of about kGroup token blocks, all row blocks inside, so
/// that the X of a group and the W that streams past stay in L2 together.
struct TileCursor {
  static constexpr int kGroup = 8;
  int row_cluster;
  int token_cluster;

  __device__ __forceinline__ TileCursor(int tile, int row_clusters, int token_clusters,
                                        int cluster_tokens) {
    const int group_size = max(1, kGroup / cluster_tokens);
    const int per_group = group_size * row_clusters;
    const int group = tile / per_group;
    const int first = group * group_size;
    const int width = min(group_size, token_clusters - first);
    const int inside = tile - group * per_group;
    token_cluster = first + inside % width;
    row_cluster = inside / width;
  }
};

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    gemm_sp24(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap y_map,
              const __grid_constant__ GemmParams<T> p, const __grid_constant__ CUtensorMap w_map) {
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
  const std::uint32_t x_stages = shared_address(shared);
  const std::uint32_t pieces = x_stages + kStages * kXBytes;
  const std::uint32_t w_stages = pieces + Shape::kBuffers * kWarpgroups * Shape::kPieceBytes;
  const std::uint32_t full = w_stages + kStages * kWBytes;
  const std::uint32_t empty = full + kStages * 8;

  // Where this block stands: which part of the inputs, and where in the rectangle of its cluster.
  const int rank = cluster_rank();
  const int part = rank / p.part_blocks();
  const int first_of_part = part * p.part_blocks();
  const int row_rank = (rank - first_of_part) % p.cluster_rows;
  const int token_rank = (rank - first_of_part) / p.cluster_rows;
  const int cluster = static_cast<int>(blockIdx.x) / (p.part_blocks() * p.split);
  const int clusters = static_cast<int>(gridDim.x) / (p.part_blocks() * p.split);
  const int row_clusters = p.row_blocks / p.cluster_rows;
  const int token_clusters = p.token_blocks / p.cluster_tokens;
  const int tiles = row_clusters * token_clusters;
  const int first = static_cast<int>(static_cast<long long>(p.input_tiles) * part / p.split);
  const int steps =
      static_cast<int>(static_cast<long long>(p.input_tiles) * (part + 1) / p.split) - first;

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i * 8, Shape::kXByTma ? 1 : 1 + 4);
      // Every warp of every block that gets a part of this block's stages.
      barrier_init(empty + i * 8, 4 * kWarpgroups * (p.cluster_rows + p.cluster_tokens - 1));
    }
    barrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  launch_dependents();

  if (warpgroup == 0) {
    // --- Loads ---
    give_registers<40>();
    int stage = 0;
    std::uint32_t parity = 1;
    // Of blocks beside each other as many load W as it has tiles, each an equal part.
    const int w_loaders = min(p.cluster_tokens, Shape::kWTiles);
    const int w_share = Shape::kWTiles / w_loaders;
    int w_blocks = 0;
    for (int i = 0; i < p.cluster_tokens; ++i) {
      w_blocks |= 1 << (first_of_part + row_rank + i * p.cluster_rows);
    }
    const auto load_weights = [&](int s, int row_tile, int k) {
      constexpr int kLines = Shape::kTile / kTileLine;
      const std::uint32_t to = w_stages + s * kWBytes;
      const std::uint32_t barrier = full + s * 8;
      if (p.cluster_tokens == 1) {
        tiles_load(to, &w_map, k * kLines, row_tile, barrier);
      } else if (token_rank < w_loaders) {
        const int tile = token_rank * w_share;
        tiles_load_multicast(to + tile * Shape::kTile, &w_map, k * kLines, row_tile + tile, barrier,
                             static_cast<std::uint16_t>(w_blocks));
      }
    };
    const int x_share = kTokens / p.cluster_rows;
    const auto x_blocks = static_cast<std::uint16_t>(
        ((1 << p.cluster_rows) - 1) << (first_of_part + token_rank * p.cluster_rows));
    constexpr int kExpected = kWBytes + (Shape::kXByTma ? kXBytes : 0);
    if (!Shape::kXByTma || thread == 0) {
      // The first weights travel while the previous kernel ends.
      int ahead = 0;
      if (p.weight_is_constant && thread == 0 && cluster < tiles) {
        const TileCursor at(cluster, row_clusters, token_clusters, p.cluster_tokens);
        const int row_tile = (at.row_cluster * p.cluster_rows + row_rank) * Shape::kWTiles;
        for (ahead = 0; ahead < min(kStages, steps); ++ahead) {
          barrier_arrive_expect(full + ahead * 8, kExpected);
          load_weights(ahead, row_tile, first + ahead);
        }
      }
      wait_for_predecessors();
      for (int tile = cluster; tile < tiles; tile += clusters) {
        const TileCursor at(tile, row_clusters, token_clusters, p.cluster_tokens);
        const int row_tile = (at.row_cluster * p.cluster_rows + row_rank) * Shape::kWTiles;
        const int token = (at.token_cluster * p.cluster_tokens + token_rank) * kTokens;
        for (int k = first; k < first + steps; ++k) {
          barrier_wait(empty + stage * 8, parity);
          const std::uint32_t barrier = full + stage * 8;
          bool w_is_next = false;
          if (thread == 0) {
            if (ahead > 0) {
              --ahead;
            } else {
              barrier_arrive_expect(barrier, kExpected);
              w_is_next = true;
              // X that threads copy takes long: W is asked for before it, otherwise behind it.
              if (!Shape::kXByTma) load_weights(stage, row_tile, k);
            }
          }
          if constexpr (Shape::kXByTma) {
            const std::uint32_t to = x_stages + stage * kXBytes + row_rank * x_share * 128;
            if (p.cluster_rows == 1) {
              tensor_load(to, &x_map, k * kInputs, token, barrier);
            } else {
              tensor_load_multicast(to, &x_map, k * kInputs, token + row_rank * x_share, barrier,
                                    x_blocks);
            }
          } else {
            fill_x_tile<T, kTokens>(shared + stage * kXBytes, p.x, p.x_stride, token, k * kInputs,
                                    p.epilogue.tokens, p.in, thread, 128);
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
    take_registers<232>();
    wait_for_predecessors();
    const int group = warpgroup - 1;
    const int lane = thread % 32;
    const bool elected = thread == 0;
    int stage = 0;
    std::uint32_t parity = 0;
    int buffer = 0;
    // A stage goes back to all blocks that loaded it: those below each other, and those beside.
    const bool releases = lane < p.cluster_rows + p.cluster_tokens - 1;
    const int beside = lane - p.cluster_rows;
    const int released_rank =
        first_of_part +
        (beside < 0 ? token_rank * p.cluster_rows + lane
                    : (beside + (beside >= token_rank ? 1 : 0)) * p.cluster_rows + row_rank);
    const std::uint32_t my_pieces = pieces + group * Shape::kBuffers * Shape::kPieceBytes;

    for (int tile = cluster; tile < tiles; tile += clusters) {
      const TileCursor at(tile, row_clusters, token_clusters, p.cluster_tokens);
      const int first_row =
          ((at.row_cluster * p.cluster_rows + row_rank) * kWarpgroups + group) * kRowTiles * 64;
      const int first_token = (at.token_cluster * p.cluster_tokens + token_rank) * kTokens;
      Sum d[kRowTiles][kTokens / 2];
      [[maybe_unused]] Sum promoted[kRowTiles][Shape::kPromotes ? kTokens / 2 : 1] = {};
      int previous = -1;
      int accumulate = 0;
      const auto release = [&](int s) {
        // Warp by warp, so that what each has read of the stage itself is ordered before it.
        __syncwarp();
        if (releases) barrier_arrive_peer(empty + s * 8, released_rank);
      };
      // The metadata registers belong to the instruction until it has ended, so consecutive steps
      // use different ones.
      const auto step = [&](Metadata<T>(&meta)[kRowTiles]) {
        barrier_wait(full + stage * 8, parity);
        const std::uint32_t w = w_stages + stage * kWBytes + group * kRowTiles * Shape::kTile;
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i)
          meta[i] = load_metadata<T>(w + i * Shape::kTile, thread);
        const std::uint64_t b = b_descriptor(x_stages + stage * kXBytes);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          multiply_tile<T>(d[i], a_descriptor(w + i * Shape::kTile), b, meta[i], accumulate);
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
          for (int i = 0; i < kRowTiles; ++i) {
            settle(d[i]);
#pragma unroll
            for (int j = 0; j < kTokens / 2; ++j) promoted[i][j] += d[i][j];
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
      wgmma_wait<0>();
      release(previous);
      if constexpr (Shape::kPromotes) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
          for (int j = 0; j < kTokens / 2; ++j) d[i][j] = promoted[i][j];
        }
      }

      finish_tile<T, Shape>(d, p, &y_map,
                            {group, thread, part, rank - first_of_part, first_row, first_token},
                            shared, my_pieces, buffer);
    }
    if (elected) tensor_store_wait();
  }
  if (p.split > 1 && warpgroup == 0) {
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
