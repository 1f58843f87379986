// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "core/nm24_tile.h"
#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/ptx.cuh"

// What the type of W and X decides. A row of a tile of W has 64 bytes of kept values and a row of a
// tile of X 128 bytes whatever the type, and an instruction reads half of either: only the number
// of inputs, the metadata and the type of the sums differ.
namespace gossamer::cuda::sm90 {

#include "cuda/sm90/wgmma_sp.inl"

template <typename T>
struct Element {
  using Tile = detail::Nm24Tile<static_cast<int>(sizeof(T))>;
  using Sum = SumOf<T>;
  static constexpr int kInputs = Tile::kInputs;
  static constexpr int kMetaWords = Tile::kMetaBytes / 512;  // of a thread
};

template <typename T>
struct Metadata {
  std::uint32_t words[Element<T>::kMetaWords];
};

/// The metadata that a thread of the warpgroup holds of the tile at `tile`.
template <typename T>
__device__ __forceinline__ Metadata<T> load_metadata(std::uint32_t tile, int thread) {
  Metadata<T> meta;
#pragma unroll
  for (int i = 0; i < Element<T>::kMetaWords; ++i) {
    meta.words[i] = load_shared_word(tile + Element<T>::Tile::kValueBytes + i * 512 + thread * 4);
  }
  return meta;
}

/// Metadata of a tile that may lie past the weight's last row. The copy engine fills in zeros
/// there, and a nibble of zeros names one position twice, for which the instruction promises
/// nothing. A packed tile holds ascending positions alone, the nibble of an empty group or more:
/// its words stay what they are. One instruction and no register; to load other tiles instead took
/// registers that the loading thread does not have.
template <typename T>
__device__ __forceinline__ Metadata<T> made_legal(Metadata<T> meta) {
#pragma unroll
  for (std::uint32_t& word : meta.words) {
    word = max(word, 0x11111111u * detail::kNm24EmptyNibble);
  }
  return meta;
}

/// d = (accumulate ? d : 0) + a tile of W times a tile of X. 16-bit types keep the metadata of both
/// halves in one register, spread over the lanes of a quad; 8-bit types use a register a half.
template <typename T, int kCount>
__device__ __forceinline__ void multiply_tile(typename Element<T>::Sum (&d)[kCount],
                                              std::uint64_t a, std::uint64_t b,
                                              const Metadata<T>& meta, int accumulate) {
  if constexpr (sizeof(T) == 2) {
    wgmma_sp<0>(T{}, d, a, b, meta.words[0], accumulate);
    wgmma_sp<1>(T{}, d, a + 2, b + 4, meta.words[0], 1);
  } else {
    wgmma_sp<0>(T{}, d, a, b, meta.words[0], accumulate);
    wgmma_sp<0>(T{}, d, a + 2, b + 4, meta.words[1], 1);
  }
}

// Sums travel and wait as 32-bit patterns in registers of type float, whatever they are.
__device__ __forceinline__ float to_bits(float sum) { return sum; }
__device__ __forceinline__ float to_bits(int sum) { return __int_as_float(sum); }

template <typename Sum>
__device__ __forceinline__ Sum from_bits(float bits) {
  if constexpr (__is_same(Sum, int)) {
    return __float_as_int(bits);
  } else {
    return bits;
  }
}

template <typename Sum>
__device__ __forceinline__ float4 add_bits(float4 a, float4 b) {
  return make_float4(to_bits(from_bits<Sum>(a.x) + from_bits<Sum>(b.x)),
                     to_bits(from_bits<Sum>(a.y) + from_bits<Sum>(b.y)),
                     to_bits(from_bits<Sum>(a.z) + from_bits<Sum>(b.z)),
                     to_bits(from_bits<Sum>(a.w) + from_bits<Sum>(b.w)));
}

}  // namespace gossamer::cuda::sm90
