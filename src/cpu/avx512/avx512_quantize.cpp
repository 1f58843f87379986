// SPDX-License-Identifier: BSD-3-Clause
// Tokens to int8, AVX-512: bound by reading X twice.
#include "cpu/quantize_task.h"

namespace {

#include "cpu/quantize.inl"

}  // namespace

namespace gossamer::cpu {

float avx512_quantize(const float* x, std::int64_t count, std::int8_t* q) {
  return quantize(x, count, q);
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
