// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), W 2:4 in row pairs, float32, AVX-512.
//
//   word >> {0, 2, 4, 6 | 8, …}  ->  permute(4 inputs a lane)  ->  multiply-add with 16 kept values
//
// A load, an in-lane permute and a multiply-add for every 16 kept values and token; the weight's
// own loads and shifts are shared by up to 8 tokens. Few tokens: bound by the packed bytes, 2.13 a
// dense element instead of 4. Many tokens: by the permute and multiply-add ports.
//
// Against torch's dense linear, 1024×1024, one thread of a zen5-avx512 (2026-11-23), at 1 / 8 / 256
// tokens: 2.3x / 4.1x / 2.7x.
#include <immintrin.h>

#include <cstdint>

#include "cpu/nm24_task.h"

namespace {

#include "cpu/avx512/vector.inl"
//
#include "cpu/epilogue.inl"

using Word = __m512i;
using Control = __m512i;
constexpr int kVectorsPerWord = 1;
constexpr int kWordsPerStep = 2;

inline Vector permute(Vector a, Control control) { return _mm512_permutevar_ps(a, control); }

inline Word load_word(const std::uint8_t* p) {
  std::int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(word);
}

inline Control select_control(Word word, int) {
  const __m512i shifts =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_srlv_epi32(word, shifts);
}

/// Lanes are (row 0 slot 0, row 0 slot 1, row 1 slot 0, row 1 slot 1) of each group.
inline void reduce_pair(Vector v, float* rows) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 both = _mm_hadd_ps(sum, sum);
  rows[0] = _mm_cvtss_f32(both);
  rows[1] = _mm_cvtss_f32(_mm_movehdup_ps(both));
}

#include "cpu/linear_nm24.inl"

}  // namespace

namespace gossamer::cpu {

void avx512_linear_nm24_f32(const Nm24Task& task) {
  switch (task.tokens) {
    case 1:
      return linear_rows<4, 1>(task);
    case 2:
      return linear_rows<4, 2>(task);
    case 3:
      return linear_rows<4, 3>(task);
    case 4:
      return linear_rows<4, 4>(task);
    case 5:
      return linear_rows<2, 5>(task);
    case 6:
      return linear_rows<2, 6>(task);
    case 7:
      return linear_rows<2, 7>(task);
    default:
      return linear_rows<2, 8>(task);
  }
}

}  // namespace gossamer::cpu
