// SPDX-License-Identifier: BSD-3-Clause
// Tokens to int8, AVX2: bound by reading X twice.
#include "cpu/quantize_task.h"

namespace {

#include "cpu/round_all.inl"
//
#include "cpu/quantize.inl"

}  // namespace

namespace gossamer::cpu {

float avx2_quantize(const float* x, std::int64_t count, std::int8_t* q) {
  return quantize<round_all>(x, count, q);
}

float avx2_quantize_at(const float* x, std::int64_t count, float scale, std::int8_t* q) {
  return quantize_at(x, count, scale, q);
}

void avx2_requantize(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  requantize_all(x, count, inverse, q);
}

std::int32_t avx2_largest_bits(const float* x, std::int64_t count) {
  return largest_bits(x, count);
}

}  // namespace gossamer::cpu
