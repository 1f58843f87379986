// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <type_traits>

// X without the copy engine, for bases or rows that are not aligned to 16 bytes: by words of the
// alignment that all rows have.
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
  const auto bits = reinterpret_cast<std::uintptr_t>(x) |
                    static_cast<std::uintptr_t>(stride * static_cast<int>(sizeof(T)));
  const bool has_words = bits % 4 == 0;
  const bool has_pairs = bits % 8 == 0;
#pragma unroll 1
  for (int i = thread; i < kTokens * kChunks; i += threads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const int token = first_token + row;
    const int input = first_input + chunk * kChunk;
    union {
      uint4 vector;
      std::uint64_t pairs[2];
      std::uint32_t words[4];
      Raw raw[kChunk];
    } part;
    part.vector = make_uint4(0, 0, 0, 0);
    if (token < tokens) {
      const auto* from = reinterpret_cast<const Raw*>(x + token * stride) + input;
      const bool is_whole = input + kChunk <= in;
      if (is_whole && has_pairs) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          part.pairs[k] = reinterpret_cast<const std::uint64_t*>(from)[k];
        }
      } else if (is_whole && has_words) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          part.words[k] = reinterpret_cast<const std::uint32_t*>(from)[k];
        }
      } else {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          if (input + k < in) part.raw[k] = from[k];
        }
      }
    }
    *reinterpret_cast<uint4*>(tile + row * 128 + ((chunk ^ (row % 8)) * 16)) = part.vector;
  }
}

}  // namespace gossamer::cuda::sm90
