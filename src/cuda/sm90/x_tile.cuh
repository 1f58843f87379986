// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <type_traits>

// X without the copy engine, for bases or rows that are not aligned to 16 bytes.
namespace gossamer::cuda::sm90 {

/// Writes kTokens rows of 128 bytes (128-byte swizzle) as the copy engine would: zeros past the
/// last token and the last input. The `threads` threads of a group share the work.
template <typename T, int kTokens>
__device__ __forceinline__ void fill_x_tile(unsigned char* tile, const T* x, std::int64_t stride,
                                            int first_token, int first_input, int tokens, int in,
                                            int thread, int threads) {
  // 16 bytes of shared memory at a time: one unit of the swizzle.
  using Raw = std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint8_t>;
  constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
  constexpr int kChunks = 8;
#pragma unroll 1
  for (int i = thread; i < kTokens * kChunks; i += threads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const int token = first_token + row;
    const int input = first_input + chunk * kChunk;
    union {
      uint4 vector;
      Raw raw[kChunk];
    } part;
    part.vector = make_uint4(0, 0, 0, 0);
    if (token < tokens) {
      const auto* from = reinterpret_cast<const Raw*>(x + token * stride) + input;
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        if (input + k < in) part.raw[k] = from[k];
      }
    }
    *reinterpret_cast<uint4*>(tile + row * 128 + ((chunk ^ (row % 8)) * 16)) = part.vector;
  }
}

}  // namespace gossamer::cuda::sm90
