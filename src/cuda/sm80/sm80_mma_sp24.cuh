// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/nm24_tile.h"
#include "cuda/common/epilogue.cuh"

// Y = act(X·Wᵀ + bias + residual), W 2:4, for compute capability 8.0 and later: mma.sp.sync, tiles
// fetched by cp.async.
//
// The tiles are those of the kernels for 9.0 (core/nm24_tile.h), because mma.sp spreads metadata
// over a warp just as wgmma.sp does over each of its four warps: a lane's word of the tile is its
// operand, and the 64-byte swizzle serves ldmatrix as well as the tensor core's own reads. As
// there, the sparse operand comes first, so that the product is Yᵀ = W·Xᵀ.
//
//   block: 128 outputs by kTokens tokens, eight warps; stage: one tile of inputs, 9 or 10 KB of W
//   and 128 bytes a token of X. Bound: mma.sp at twice the dense rate, if L2 delivers. Not timed
//   on a card of 8.x yet; `python -m gossamer.bench gpu-24-more` times it on 9.0.
namespace gossamer::cuda::sm80 {

template <typename T>
struct MmaParams {
  const unsigned char* tiles;
  const T* x;
  void* y;
  std::int64_t x_stride;
  std::int64_t y_stride;
  Epilogue<T> epilogue;
  int in;
  int row_tiles;
  int input_tiles;
  int row_blocks;
};

/// The compile-time shape of a block.
template <typename T, int kTokens_, bool kAligned_>
struct MmaShape {
  static constexpr int kTokens = kTokens_;
  static constexpr bool kAligned = kAligned_;  // X: base and rows at multiples of 16 bytes
  static constexpr int kThreads = 256;
  static constexpr int kRows = 128;
  static constexpr int kStages = 3;
  using Tile = detail::Nm24Tile<static_cast<int>(sizeof(T))>;
  static constexpr int kWBytes = Tile::kBytes * kRows / Tile::kRows;
  static constexpr int kXBytes = kTokens * 128;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  // Warps along the rows and along the tokens; fragments of 16 rows and of 8 tokens a warp.
  static constexpr int kRowWarps = kTokens >= 32 ? 4 : 8;
  static constexpr int kTokenWarps = 8 / kRowWarps;
  static constexpr int kRowFragments = kRows / kRowWarps / 16;
  static constexpr int kTokenFragments = kTokens / kTokenWarps / 8;
  // Sums wait in shared memory to be written in the order of Y; the padding spreads the banks.
  static constexpr int kSumStride = kRows + 4;
  static constexpr int kSumBytes = kTokens * kSumStride * 4;
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kSumBytes ? kStages* kStageBytes : kSumBytes;
};

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes, the last 16 - `bytes` of them zero.
__device__ __forceinline__ void copy_async(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8×8 matrices of 16-bit elements (or 8×16 of 8-bit ones), a row's address from each lane.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

template <int kSelector>
__device__ __forceinline__ void mma_sp(__nv_bfloat16, float (&d)[4], const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[4], std::uint32_t e) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(e), "n"(kSelector));
}

template <int kSelector>
__device__ __forceinline__ void mma_sp(__half, float (&d)[4], const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[4], std::uint32_t e) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(e), "n"(kSelector));
}

template <int kSelector>
__device__ __forceinline__ void mma_sp(signed char, int (&d)[4], const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[4], std::uint32_t e) {
  // All lanes hold metadata, so the selector is 0 for both halves of a tile.
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(e));
}

/// Asks for one tile of inputs: the block's rows of W, and X with zeros past its edges.
template <typename T, typename Shape>
__device__ __forceinline__ void load_stage(const MmaParams<T>& p, std::uint32_t stage, int row_tile,
                                           int first_token, int tile) {
  using Tile = typename Shape::Tile;
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int kChunks = Tile::kBytes / 16;
  for (int i = thread; i < kChunks * Shape::kRows / Tile::kRows; i += Shape::kThreads) {
    // Rows past the last tile repeat it; their results are not written.
    const long long row = min(row_tile + i / kChunks, p.row_tiles - 1);
    const unsigned char* from =
        p.tiles + (row * p.input_tiles + tile) * Tile::kBytes + i % kChunks * 16;
    copy_async(stage + i * 16, from, 16);
  }
  constexpr int kInputsOfChunk = 16 / static_cast<int>(sizeof(T));
  const std::uint32_t x_tile = stage + Shape::kWBytes;
  for (int i = thread; i < Shape::kTokens * 8; i += Shape::kThreads) {
    const int row = i / 8;
    const int chunk = i % 8;
    const int token = first_token + row;
    const int input = tile * Tile::kInputs + chunk * kInputsOfChunk;
    const std::uint32_t to = x_tile + row * 128 + ((chunk ^ (row % 8)) * 16);
    const int inside = token < p.epilogue.tokens ? max(0, min(kInputsOfChunk, p.in - input)) : 0;
    // Where nothing is read the address only has to be a valid one.
    const T* from = inside > 0 ? p.x + token * p.x_stride + input : p.x;
    if constexpr (Shape::kAligned) {
      copy_async(to, from, inside * static_cast<int>(sizeof(T)));
    } else {
      union {
        uint4 vector;
        T elements[kInputsOfChunk];
      } part;
      part.vector = make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int k = 0; k < kInputsOfChunk; ++k) {
        if (k < inside) part.elements[k] = from[k];
      }
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(part.vector.x),
                   "r"(part.vector.y), "r"(part.vector.z), "r"(part.vector.w)
                   : "memory");
    }
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    mma_sp24(const __grid_constant__ MmaParams<T> p) {
  using Tile = typename Shape::Tile;
  using Sum = SumOf<T>;
  constexpr int kStages = Shape::kStages;
  extern __shared__ __align__(1024) unsigned char shared[];
  const std::uint32_t stages = shared_address(shared);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row_block = static_cast<int>(blockIdx.x) % p.row_blocks;
  const int first_token = static_cast<int>(blockIdx.x) / p.row_blocks * Shape::kTokens;
  const int row_tile = row_block * (Shape::kRows / Tile::kRows);
  const int warp_row = warp % Shape::kRowWarps * Shape::kRowFragments * 16;
  const int warp_token = warp / Shape::kRowWarps * Shape::kTokenFragments * 8;

  Sum d[Shape::kRowFragments][Shape::kTokenFragments][4] = {};
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < p.input_tiles) {
      load_stage<T, Shape>(p, stages + s * Shape::kStageBytes, row_tile, first_token, s);
    }
    copy_commit();
  }
  for (int k = 0; k < p.input_tiles; ++k) {
    copy_wait<kStages - 2>();
    __syncthreads();
    // The stage that the step before this one has read.
    if (const int next = k + kStages - 1; next < p.input_tiles) {
      load_stage<T, Shape>(p, stages + next % kStages * Shape::kStageBytes, row_tile, first_token,
                           next);
    }
    copy_commit();
    const std::uint32_t w = stages + k % kStages * Shape::kStageBytes;
    const std::uint32_t x = w + Shape::kWBytes;
    const auto half = [&]<int kHalf>() {
      std::uint32_t a[Shape::kRowFragments][4];
      std::uint32_t e[Shape::kRowFragments];
#pragma unroll
      for (int i = 0; i < Shape::kRowFragments; ++i) {
        const int fragment = warp_row / 16 + i;
        const std::uint32_t tile = w + fragment / 4 * Tile::kBytes;
        const int row = fragment % 4 * 16 + lane % 16;
        const int chunk = kHalf * 2 + lane / 16;
        load_matrices(a[i], tile + row * Tile::kRowBytes + ((chunk ^ (row / 2 % 4)) * 16));
        const int word = (sizeof(T) == 1 ? kHalf * 128 : 0) + fragment % 4 * 32 + lane;
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(e[i])
                     : "r"(tile + Tile::kValueBytes + word * 4)
                     : "memory");
      }
#pragma unroll
      for (int j = 0; j < Shape::kTokenFragments; ++j) {
        const int row = warp_token + j * 8 + lane % 8;
        const int chunk = kHalf * 4 + lane / 8;
        std::uint32_t b[4];
        load_matrices(b, x + row * 128 + ((chunk ^ (row % 8)) * 16));
#pragma unroll
        for (int i = 0; i < Shape::kRowFragments; ++i) mma_sp<kHalf>(T{}, d[i][j], a[i], b, e[i]);
      }
    };
    half.template operator()<0>();
    half.template operator()<1>();
  }
  copy_wait<0>();
  __syncthreads();

  // Sums lie with outputs along the rows of the fragments, Y has them along its columns.
  auto* const sums = reinterpret_cast<Sum*>(shared);
#pragma unroll
  for (int i = 0; i < Shape::kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kTokenFragments; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int row = warp_row + i * 16 + lane / 4 + v / 2 * 8;
        const int token = warp_token + j * 8 + lane % 4 * 2 + v % 2;
        sums[token * Shape::kSumStride + row] = d[i][j][v];
      }
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) % Shape::kRows;
  const int out_row = row_block * Shape::kRows + row;
  if (out_row >= p.epilogue.out) return;
  const float bias = p.epilogue.bias_of(out_row);
  const float scale = p.epilogue.weight_scale_of(out_row);
  for (int t = static_cast<int>(threadIdx.x) / Shape::kRows; t < Shape::kTokens;
       t += Shape::kThreads / Shape::kRows) {
    const int token = first_token + t;
    if (token >= p.epilogue.tokens) return;
    float y[1] = {static_cast<float>(sums[t * Shape::kSumStride + row])};
    if constexpr (Epilogue<T>::kIsScaled) y[0] *= scale * p.epilogue.x_scale_of(token);
    y[0] += bias;
    if (p.epilogue.residual != nullptr) y[0] += p.epilogue.residual_of(token, out_row);
    p.epilogue.activate(y);
    p.epilogue.store(p.y, token * p.y_stride + out_row, y[0]);
  }
}

}  // namespace gossamer::cuda::sm80
