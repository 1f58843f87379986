// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"

// The end of a tile of sm90_gemm_sp24.cuh: sums of a divided product are exchanged, scales, bias,
// residual and activation applied, and the result is turned around on its way to Y. Everything is
// inlined into the kernel: the sums stay in the registers that the tensor core left them in.
namespace gossamer::cuda::sm90 {

template <typename T>
struct GemmParams;  // sm90_gemm_sp24.cuh

/// Where a thread of a multiplying warpgroup stands.
struct GemmPlace {
  int group;     // which of the warpgroups
  int thread;    // of its 128
  int part;      // of the inputs
  int row_rank;  // among the blocks that share X
  int first_row;
  int first_token;

  __device__ __forceinline__ int warp() const { return thread / 32; }
  __device__ __forceinline__ int lane() const { return thread % 32; }
};

/// Pieces of the tile that this block finishes.
struct PieceRange {
  int first;
  int end;
};

/// Adds the sums of all parts of the inputs; returns which pieces of the tile this block finishes:
/// all, or its share of them.
template <typename T, typename Shape>
__device__ __forceinline__ PieceRange
exchange_sums(typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2],
              const GemmParams<T>& p, const GemmPlace& at, std::uint32_t x_stages) {
  using Sum = typename Element<T>::Sum;
  PieceRange mine{0, Shape::kPieces};
  if (p.split > 1) {
    const auto start_of = [&](int owner) {
      return (owner * Shape::kPieces + p.split - 1) / p.split;
    };
    mine.first = start_of(at.part);
    mine.end = start_of(at.part + 1);
    // Everyone in the cluster has read its last stage: stages become buffers for sums,
    // [source][tile][octet of tokens][thread of both warpgroups] of 16 bytes.
    constexpr int kPieceOctets = Shape::kPiece / 8;
    const int octets = (Shape::kPieces + p.split - 1) / p.split * kPieceOctets;
    const auto place = [&](int source, int i, int octet) {
      return x_stages + (((source * Shape::kRowTiles + i) * octets + octet) * 256 + at.group * 128 +
                         at.thread) *
                            16;
    };
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int h = 0; h < Shape::kPieces; ++h) {
      const int owner = h * p.split / Shape::kPieces;
      const int peer = owner * Shape::kCluster + at.row_rank;
      const int octet = (h - start_of(owner)) * kPieceOctets;
#pragma unroll
      for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kPieceOctets; ++j) {
          const Sum* v = &d[i][(h * kPieceOctets + j) * 4];
          store_peer(peer_address(place(at.part, i, octet + j), peer),
                     make_float4(to_bits(v[0]), to_bits(v[1]), to_bits(v[2]), to_bits(v[3])));
        }
      }
    }
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int h = 0; h < Shape::kPieces; ++h) {
      if (h < mine.first || h >= mine.end) continue;
#pragma unroll
      for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kPieceOctets; ++j) {
          const int octet = (h - mine.first) * kPieceOctets + j;
          float4 sum = load_shared_float4(place(0, i, octet));
          for (int source = 1; source < p.split; ++source) {
            sum = add_bits<Sum>(sum, load_shared_float4(place(source, i, octet)));
          }
          Sum* v = &d[i][(h * kPieceOctets + j) * 4];
          v[0] = from_bits<Sum>(sum.x);
          v[1] = from_bits<Sum>(sum.y);
          v[2] = from_bits<Sum>(sum.z);
          v[3] = from_bits<Sum>(sum.w);
        }
      }
    }
  }

  return mine;
}

/// Multiplies by the scales of tokens and outputs. From here on the registers of sums hold float32,
/// as bit patterns where sums are integers.
template <typename T, typename Shape>
__device__ __forceinline__ void apply_scales(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], const GemmParams<T>& p,
    const GemmPlace& at) {
  using Sum = typename Element<T>::Sum;
#pragma unroll
  for (int i = 0; i < Shape::kRowTiles; ++i) {
    const int row = at.first_row + i * 64 + at.warp() * 16 + at.lane() / 4;
    const float scales[2] = {p.epilogue.weight_scale_of(row), p.epilogue.weight_scale_of(row + 8)};
#pragma unroll
    for (int j = 0; j < Shape::kTokens / 2; ++j) {
      const int token = at.first_token + j / 4 * 8 + at.lane() % 4 * 2 + j % 2;
      d[i][j] = from_bits<Sum>(static_cast<float>(d[i][j]) *
                               (scales[j / 2 % 2] * p.epilogue.x_scale_of(token)));
    }
  }
}

/// Adds the residual.
template <typename T, typename Shape>
__device__ __forceinline__ void add_residual(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], const GemmParams<T>& p,
    const GemmPlace& at) {
  using Sum = typename Element<T>::Sum;
#pragma unroll
  for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kTokens / 2; ++j) {
      const int token = at.first_token + j / 4 * 8 + at.lane() % 4 * 2 + j % 2;
      const int row = at.first_row + i * 64 + at.warp() * 16 + at.lane() / 4 + j / 2 % 2 * 8;
      d[i][j] = from_bits<Sum>(to_bits(d[i][j]) + p.epilogue.residual_of(token, row));
    }
  }
}

/// Adds the bias, activates and writes. `buffer`: which of the warpgroup's buffers is next.
template <typename T, typename Shape>
__device__ __forceinline__ void write_pieces(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], const GemmParams<T>& p,
    const CUtensorMap* y_map, const GemmPlace& at, const PieceRange& mine,
    const unsigned char* shared, std::uint32_t pieces, int& buffer) {
  using Sum = typename Element<T>::Sum;
  // Results lie with outputs along the rows of the fragments, Y has them along its columns:
  // turned around in shared memory, piece by piece, buffers in turn.
#pragma unroll
  for (int i = 0; i < Shape::kRowTiles; ++i) {
    const int tile_row = at.first_row + i * 64;
    const int row = tile_row + at.warp() * 16 + at.lane() / 4;
    const float bias[2] = {p.epilogue.bias_of(row), p.epilogue.bias_of(row + 8)};
#pragma unroll
    for (int h = 0; h < Shape::kPieces; ++h) {
      if (h < mine.first || h >= mine.end) continue;
      const int piece_token = at.first_token + h * Shape::kPiece;
      const std::uint32_t piece = pieces + buffer * Shape::kPieceBytes;
      buffer = buffer + 1 == Shape::kBuffers ? 0 : buffer + 1;
      if (at.thread == 0) tensor_store_wait_read<Shape::kBuffers - 1>();
      named_barrier(at.group + 1, 128);
#pragma unroll
      for (int j = 0; j < Shape::kPiece / 8; j += 2) {
        std::uint32_t pairs[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const int octet = h * (Shape::kPiece / 8) + j + m / 2;
          const int r = m % 2;
          const Sum* v = &d[i][octet * 4 + r * 2];
          pairs[m] = p.epilogue.pack_pair(p.epilogue.activate(to_bits(v[0]) + bias[r]),
                                          p.epilogue.activate(to_bits(v[1]) + bias[r]));
        }
        const int matrix = at.lane() / 8;
        const int token_row = (j + matrix / 2) * 8 + at.lane() % 8;
        const int chunk = at.warp() * 2 + matrix % 2;
        store_matrices_transposed(piece + token_row * 128 + ((chunk ^ (token_row & 7)) * 16),
                                  pairs[0], pairs[1], pairs[2], pairs[3]);
      }
      if (p.y_by_tma) {
        fence_async_proxy();
        named_barrier(at.group + 1, 128);
        if (at.thread == 0 && tile_row < p.epilogue.out && piece_token < p.epilogue.tokens) {
          tensor_store(y_map, piece, tile_row, piece_token);
        }
      } else {
        named_barrier(at.group + 1, 128);
        const auto* from =
            reinterpret_cast<const unsigned short*>(shared + (piece - shared_address(shared)));
        auto* to = reinterpret_cast<unsigned short*>(p.y);
        for (int e = at.thread; e < Shape::kPiece * 64; e += 128) {
          const int t = e / 64;
          const int r = e % 64;
          if (piece_token + t < p.epilogue.tokens && tile_row + r < p.epilogue.out) {
            to[(piece_token + t) * p.y_stride + tile_row + r] =
                from[t * 64 + ((r / 8) ^ (t & 7)) * 8 + r % 8];
          }
        }
      }
    }
  }
}

/// All of the above, in this order.
template <typename T, typename Shape>
__device__ __forceinline__ void finish_tile(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], const GemmParams<T>& p,
    const CUtensorMap* y_map, const GemmPlace& at, const unsigned char* shared,
    std::uint32_t pieces, int& buffer) {
  const PieceRange mine = exchange_sums<T, Shape>(d, p, at, shared_address(shared));
  if constexpr (Epilogue<T>::kIsScaled) apply_scales<T, Shape>(d, p, at);
  if (p.epilogue.residual != nullptr) add_residual<T, Shape>(d, p, at);
  write_pieces<T, Shape>(d, p, y_map, at, mine, shared, pieces, buffer);
}

}  // namespace gossamer::cuda::sm90
