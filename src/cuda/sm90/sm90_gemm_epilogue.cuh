// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_shape.cuh"
#include "cuda/sm90/sm90_piece_writer.cuh"

// The end of a tile of sm90_gemm_sp24.cuh: sums of a divided product are exchanged, scales, bias,
// residual and activation applied, and the result is turned around on its way to Y. Everything is
// inlined into the kernel: the sums stay in the registers that the tensor core left them in.
namespace gossamer::cuda::sm90 {

/// Where a thread of a multiplying warpgroup stands.
struct GemmPlace {
  int group;        // which of the warpgroups
  int thread;       // of its 128
  int split;        // parts of the inputs
  int part;         // this block's
  int first_peer;   // rank in the cluster of the block that has part 0
  int peer_stride;  // and how far from one part's block to the next
  int first_row;
  int first_token;

  __device__ __forceinline__ int warp() const { return thread / 32; }
  __device__ __forceinline__ int lane() const { return thread % 32; }
};

/// Adds the sums of all parts of the inputs; returns which pieces of the tile this block finishes:
/// all, or its share of them.
template <typename T, typename Shape>
__device__ __forceinline__ PieceRange
exchange_sums(typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2],
              const GemmPlace& at, std::uint32_t stages) {
  using Sum = typename Element<T>::Sum;
  PieceRange mine{0, Shape::kPieces};
  if (at.split > 1) {
    const auto start_of = [&](int owner) {
      return (owner * Shape::kPieces + at.split - 1) / at.split;
    };
    mine.first = start_of(at.part);
    mine.end = start_of(at.part + 1);
    // Everyone in the cluster has read its last stage: stages become buffers for sums,
    // [source][tile][octet of tokens][thread of all warpgroups] of 16 bytes.
    constexpr int kPieceOctets = Shape::kPiece / 8;
    const int octets = (Shape::kPieces + at.split - 1) / at.split * kPieceOctets;
    const auto place = [&](int source, int i, int octet) {
      return stages +
             (((source * Shape::kRowTiles + i) * octets + octet) * (Shape::kWarpgroups * 128) +
              at.group * 128 + at.thread) *
                 16;
    };
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int h = 0; h < Shape::kPieces; ++h) {
      const int owner = h * at.split / Shape::kPieces;
      const int peer = at.first_peer + owner * at.peer_stride;
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
          for (int source = 1; source < at.split; ++source) {
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

/// The bias and scales that a thread will need, or will hand to its warpgroup: asked for before the
/// products, so that they are there when those have ended. Where Shape::kIsFull there are no
/// registers to keep them in: scales are asked for while the last products run, the bias where it
/// is added.
template <typename T, typename Shape>
struct TileTerms {
  static constexpr int kRows = 2 * Shape::kRowTiles;
  static constexpr int kScaledRows = Epilogue<T>::kIsScaled ? kRows : 1;
  static constexpr int kTokens = Epilogue<T>::kIsScaled ? (Shape::kTokens + 127) / 128 : 1;
  float bias[kRows];
  float row_scales[kScaledRows];
  float token_scales[kTokens];

  __device__ __forceinline__ void load(const GemmParams<T>& p, const GemmPlace& at) {
    const int first_row = at.first_row + at.warp() * 16 + at.lane() / 4;
    if constexpr (!Shape::kIsFull) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        bias[i] = p.epilogue.bias_of(first_row + i / 2 * 64 + i % 2 * 8);
      }
    }
    if constexpr (Epilogue<T>::kIsScaled) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        row_scales[i] = p.epilogue.weight_scale_of(first_row + i / 2 * 64 + i % 2 * 8);
      }
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        token_scales[i] = p.epilogue.x_scale_of(at.first_token + i * 128 + at.thread);
      }
    }
  }
};

/// Hands the scales of tokens to all threads of the warpgroup, through its shared memory.
template <typename T, typename Shape>
__device__ __forceinline__ void share_token_scales(const TileTerms<T, Shape>& terms,
                                                   const GemmPlace& at, float* shared_scales) {
  named_barrier(at.group + 1, 128);  // all have read those of the tile before
#pragma unroll
  for (int i = 0; i < TileTerms<T, Shape>::kTokens; ++i) {
    const int token = i * 128 + at.thread;
    if (token < Shape::kTokens) {
      shared_scales[token] = terms.token_scales[i];
    }
  }
  named_barrier(at.group + 1, 128);
}

/// The scales of this thread's two tokens of octet `j`. An ordinary load: the compiler may ask for
/// them early, between the writes of results before them.
__device__ __forceinline__ float2 token_scales_of(const float* shared_scales, int j, int lane) {
  return *reinterpret_cast<const float2*>(shared_scales + j * 8 + lane % 4 * 2);
}

/// Multiplies by the scales of tokens and outputs. From here on the registers of sums hold float32,
/// as bit patterns where sums are integers.
template <typename T, typename Shape>
__device__ __forceinline__ void apply_scales(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2],
    const TileTerms<T, Shape>& terms, const GemmPlace& at, float* shared_scales) {
  using Sum = typename Element<T>::Sum;
#pragma unroll
  for (int j = 0; j < Shape::kTokens / 8; ++j) {
    const float2 token = token_scales_of(shared_scales, j, at.lane());
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Sum& sum = d[i][j * 4 + e];
        sum = from_bits<Sum>(static_cast<float>(sum) *
                             (terms.row_scales[2 * i + e / 2] * (e % 2 == 0 ? token.x : token.y)));
      }
    }
  }
}

/// Adds the residual of a plain result.
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
      d[i][j] = from_bits<Sum>(to_bits(d[i][j]) + p.epilogue.plain_residual_of(token, row));
    }
  }
}

/// Plain results of 8 tokens, `octet` of tile `i` of rows: scales where `kScales`, the bias, and
/// rounded to pairs of tokens, the first in the low half; row, then row + 8.
template <bool kIsHalf, bool kScales, typename T, typename Shape>
__device__ __forceinline__ void round_octet(
    const typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], int i, int octet,
    const TileTerms<T, Shape>& terms, const float (&bias)[2], const float* shared_scales, int lane,
    std::uint32_t (&pairs)[2]) {
  float2 token = make_float2(1.0f, 1.0f);
  if constexpr (kScales) token = token_scales_of(shared_scales, octet, lane);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto* v = &d[i][octet * 4 + r * 2];
    float first;
    float second;
    if constexpr (kScales) {
      const float row = terms.row_scales[2 * i + r];
      first = fmaf(static_cast<float>(v[0]), row * token.x, bias[r]);
      second = fmaf(static_cast<float>(v[1]), row * token.y, bias[r]);
    } else {
      first = to_bits(v[0]) + bias[r];
      second = to_bits(v[1]) + bias[r];
    }
    pairs[r] = Epilogue<T>::template round_pair<kIsHalf>(first, second);
  }
}

/// Plain results: the bias, perhaps ReLU, and out; unrolled over the sums. Half of the buffers are
/// filled between two barriers.
template <bool kIsHalf, bool kScales, typename T, typename Shape>
__device__ __forceinline__ void write_plain_as(
    const typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2],
    const GemmParams<T>& p, const GemmPlace& at, const PieceRange& mine,
    const TileTerms<T, Shape>& terms, float* shared_scales, PieceWriter<T, Shape>& writer) {
  constexpr int kBatch = Shape::kBuffers / 2;
#pragma unroll
  for (int i = 0; i < Shape::kRowTiles; ++i) {
    float bias[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (Shape::kIsFull) {
        bias[r] =
            p.epilogue.bias_of(at.first_row + i * 64 + at.warp() * 16 + at.lane() / 4 + r * 8);
      } else {
        bias[r] = terms.bias[2 * i + r];
      }
    }
#pragma unroll
    for (int first = 0; first < Shape::kPieces; first += kBatch) {
      if (first + kBatch <= mine.first || first >= mine.end) continue;
      writer.template begin<kBatch>();
      std::uint32_t filled[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        // A batch takes all of its buffers, also where it has fewer pieces.
        writer.next();
        filled[b] = writer.piece;
        const int h = first + b;
        if (h >= Shape::kPieces) continue;
        if (h < mine.first || h >= mine.end) continue;
#pragma unroll
        for (int j = 0; j < Shape::kPiece / 8; j += 2) {
          std::uint32_t pairs[2][2];
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            round_octet<kIsHalf, kScales, T, Shape>(d, i, h * (Shape::kPiece / 8) + j + m, terms,
                                                    bias, shared_scales, at.lane(), pairs[m]);
            if (p.epilogue.is_relu()) {
              pairs[m][0] = Epilogue<T>::template relu_pair<kIsHalf>(pairs[m][0]);
              pairs[m][1] = Epilogue<T>::template relu_pair<kIsHalf>(pairs[m][1]);
            }
          }
          writer.put(j, {pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]});
        }
      }
      writer.end();
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int h = first + b;
        if (h < mine.first || h >= mine.end) continue;
        writer.send(filled[b], at.first_row + i * 64, at.first_token + h * Shape::kPiece);
      }
      writer.commit();
    }
  }
}

/// The same in the type that is written, which only 8-bit products choose at run time.
template <bool kScales, typename T, typename Shape>
__device__ __forceinline__ void write_plain(
    const typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2],
    const GemmParams<T>& p, const GemmPlace& at, const PieceRange& mine,
    const TileTerms<T, Shape>& terms, float* shared_scales, PieceWriter<T, Shape>& writer) {
  if constexpr (!Epilogue<T>::kIsScaled) {
    write_plain_as<__is_same(T, __half), kScales>(d, p, at, mine, terms, shared_scales, writer);
  } else if (p.epilogue.writes_half()) {
    write_plain_as<true, kScales>(d, p, at, mine, terms, shared_scales, writer);
  } else {
    write_plain_as<false, kScales>(d, p, at, mine, terms, shared_scales, writer);
  }
}

/// v = sums of group `group` of eight. Registers have no index: a tree of branches over
/// [kBegin, kEnd) finds the group's own moves, which are volatile so that no compiler executes them
/// all and selects.
template <int kBegin, int kEnd, typename Sum, int kRowTiles, int kSums>
__device__ __forceinline__ void pick_group(float (&v)[8], const Sum (&d)[kRowTiles][kSums],
                                           int group) {
  if constexpr (kEnd - kBegin == 1) {
    constexpr int kGroups = kSums / 8;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      asm volatile("mov.b32 %0, %1;"
                   : "=f"(v[e])
                   : "f"(to_bits(d[kBegin / kGroups][kBegin % kGroups * 8 + e])));
    }
  } else {
    constexpr int kMiddle = (kBegin + kEnd) / 2;
    if (group < kMiddle) {
      pick_group<kBegin, kMiddle>(v, d, group);
    } else {
      pick_group<kMiddle, kEnd>(v, d, group);
    }
  }
}

/// Results of any type under any activation: eight sums of a thread at a time, which cover 16
/// tokens of 64 rows. Unrolled like write_plain this would be tens of thousands of instructions.
/// Float32 results go to Y as they lie: eight lanes fill the 32 bytes that memory is written in.
template <typename T, typename Shape>
__device__ __forceinline__ void write_any(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], const GemmParams<T>& p,
    const GemmPlace& at, const PieceRange& mine, PieceWriter<T, Shape>& writer) {
  constexpr int kGroups = Shape::kTokens / 16;
  constexpr int kGroupsOfPiece = Shape::kPiece / 16;
  const Epilogue<T>& epilogue = p.epilogue;
#pragma unroll 1
  for (int i = 0; i < Shape::kRowTiles; ++i) {
    const int tile_row = at.first_row + i * 64;
    const int row = tile_row + at.warp() * 16 + at.lane() / 4;
    const float bias[2] = {epilogue.bias_of(row), epilogue.bias_of(row + 8)};
#pragma unroll 1
    for (int g = mine.first * kGroupsOfPiece; g < mine.end * kGroupsOfPiece; ++g) {
      float v[8];  // octet of tokens, row or row + 8, token
      pick_group<0, Shape::kRowTiles * kGroups>(v, d, i * kGroups + g);
      const int token = at.first_token + g * 16 + at.lane() % 4 * 2;
      const auto token_of = [&](int e) { return token + e / 4 * 8 + e % 2; };
      const auto row_of = [&](int e) { return row + e / 2 % 2 * 8; };
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += bias[e / 2 % 2];
      if (epilogue.residual != nullptr) {
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] += epilogue.residual_of(token_of(e), row_of(e));
      }
      epilogue.activate(v);
      if (epilogue.writes_float()) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (token_of(e) < epilogue.tokens && row_of(e) < epilogue.out) {
            static_cast<float*>(p.y)[token_of(e) * p.y_stride + row_of(e)] = v[e];
          }
        }
        continue;
      }
      const int j = g % kGroupsOfPiece;
      if (j == 0) {
        writer.template begin<1>();
        writer.next();
      }
      const std::uint32_t pairs[4] = {
          epilogue.pack_pair(v[0], v[1]), epilogue.pack_pair(v[2], v[3]),
          epilogue.pack_pair(v[4], v[5]), epilogue.pack_pair(v[6], v[7])};
      writer.put(j * 2, pairs);
      if (j + 1 == kGroupsOfPiece) {
        writer.end();
        writer.send(writer.piece, tile_row, at.first_token + g / kGroupsOfPiece * Shape::kPiece);
        writer.commit();
      }
    }
  }
}

/// All of the above, in this order.
template <typename T, typename Shape>
__device__ __forceinline__ void finish_tile(
    typename Element<T>::Sum (&d)[Shape::kRowTiles][Shape::kTokens / 2], const GemmParams<T>& p,
    const GemmPlace& at, const TileTerms<T, Shape>& terms, std::uint32_t stages,
    float* shared_scales, PieceWriter<T, Shape>& writer) {
  const PieceRange mine = exchange_sums<T, Shape>(d, at, stages);
  const bool has_residual = p.epilogue.residual != nullptr;
  if constexpr (Epilogue<T>::kIsScaled) {
    share_token_scales<T, Shape>(terms, at, shared_scales);
    // Plain results are scaled where they are rounded, which saves a multiplication.
    if (!Shape::kIsFull && p.epilogue.is_plain && !has_residual) {
      write_plain<true, T, Shape>(d, p, at, mine, terms, shared_scales, writer);
      return;
    }
    apply_scales<T, Shape>(d, terms, at, shared_scales);
  }
  if (p.epilogue.is_plain) {
    if (has_residual) add_residual<T, Shape>(d, p, at);
    write_plain<false, T, Shape>(d, p, at, mine, terms, shared_scales, writer);
  } else {
    write_any<T, Shape>(d, p, at, mine, writer);
  }
}

}  // namespace gossamer::cuda::sm90
