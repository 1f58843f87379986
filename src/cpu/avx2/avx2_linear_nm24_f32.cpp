// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), W 2:4 in row pairs, float32, AVX2.
//
//   word >> {0, 2, 4, 6 | 8, …}  ->  permute(4 inputs a lane)  ->  multiply-add with 8 kept values
//
// A load, an in-lane permute and a multiply-add for every 8 kept values and token; the weight's
// own loads and shifts are shared by up to 8 tokens. Few tokens: bound by the packed bytes, 2.13 a
// dense element instead of 4. Many tokens: by the permute and multiply-add ports.
//
// Against torch's dense linear, 1024×1024, one thread of a zen5-avx512 (2026-11-23), at 1 / 8 / 256
// tokens: 1.8x / 2.5x / 1.5x.
#include <immintrin.h>

#include <cstdint>

#include "cpu/nm24_task.h"

namespace {

#include "cpu/avx2/vector.inl"
//
#include "cpu/epilogue.inl"

using Word = __m256i;
using Control = __m256i;
constexpr int kVectorsPerWord = 2;  // 16 values a word
constexpr int kWordsPerStep = 1;

inline Vector permute(Vector a, Control control) { return _mm256_permutevar_ps(a, control); }

inline Word load_word(const std::uint8_t* p) {
  std::int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

inline Control select_control(Word word, int half) {
  const __m256i low = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  const __m256i high = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);
  return _mm256_srlv_epi32(word, half == 0 ? low : high);
}

/// Lanes are (row 0 slot 0, row 0 slot 1, row 1 slot 0, row 1 slot 1) of each group.
inline void reduce_pair(Vector v, float* rows) {
  const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 both = _mm_hadd_ps(sum, sum);
  rows[0] = _mm_cvtss_f32(both);
  rows[1] = _mm_cvtss_f32(_mm_movehdup_ps(both));
}

#include "cpu/linear_nm24.inl"

}  // namespace

namespace gossamer::cpu {

void avx2_linear_nm24_f32(const Nm24Task& task) {
  switch (task.tokens) {
    case 1:
      return linear_rows<4, 1>(task);
    case 2:
      return linear_rows<4, 2>(task);
    case 3:
      return linear_rows<2, 3>(task);
    case 4:
      return linear_rows<2, 4>(task);
    case 5:
      return linear_rows<1, 5>(task);
    case 6:
      return linear_rows<1, 6>(task);
    case 7:
      return linear_rows<1, 7>(task);
    default:
      return linear_rows<1, 8>(task);
  }
}

}  // namespace gossamer::cpu
