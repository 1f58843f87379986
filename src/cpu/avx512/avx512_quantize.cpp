// SPDX-License-Identifier: BSD-3-Clause
// Tokens to int8, AVX-512: bound by reading X twice.
#include <immintrin.h>

#include "cpu/quantize_task.h"

namespace {

#include "cpu/round_all.inl"
//
/// The same, 64 at a time: packing with saturation takes half the shuffles of taking lowest bytes.
inline void round_quickly(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  const __m512 scale = _mm512_set1_ps(inverse);
  const __m512 shift = _mm512_set1_ps(12582912.0f);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto sixteen = [&](const float* from) {
    const __m512 shifted = _mm512_fmadd_ps(_mm512_loadu_ps(from), scale, shift);
    return _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(shift));
  };
  std::int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    const __m512i low = _mm512_packs_epi32(sixteen(x + k), sixteen(x + k + 16));
    const __m512i high = _mm512_packs_epi32(sixteen(x + k + 32), sixteen(x + k + 48));
    _mm512_storeu_si512(q + k, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high)));
  }
  round_all(x + k, count - k, inverse, q + k);
}

#include "cpu/quantize.inl"

}  // namespace

namespace gossamer::cpu {

float avx512_quantize(const float* x, std::int64_t count, std::int8_t* q) {
  return quantize<round_quickly>(x, count, q);
}

float avx512_quantize_at(const float* x, std::int64_t count, float scale, std::int8_t* q) {
  return quantize_at(x, count, scale, q);
}

void avx512_requantize(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  requantize_all(x, count, inverse, q);
}

std::int32_t avx512_largest_bits(const float* x, std::int64_t count) {
  return largest_bits(x, count);
}

}  // namespace gossamer::cpu
