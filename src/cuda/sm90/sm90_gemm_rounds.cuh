// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/sm90/sm90_gemm_shape.cuh"

// Which tile of the product a block of sm90_gemm_sp24.cuh computes in which round.
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

/// A block's place in its cluster, and what lies where in its shared memory.
struct GemmBlock {
  unsigned char* shared;  // aligned to the swizzles
  std::uint32_t pieces;   // of results
  std::uint32_t x_stages;
  std::uint32_t w_stages;
  std::uint32_t full;   // barriers, one a stage
  std::uint32_t empty;  // likewise; scales lie behind them
  int rank;             // in the cluster
  int row_rank;         // among the blocks that need the same X
  int first_peer;       // rank of the first of them
  int cluster;          // of the launch
};

}  // namespace gossamer::cuda::sm90
