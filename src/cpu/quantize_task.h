// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer::cpu {

// One token of `count` inputs; the scale is returned.
float avx2_quantize(const float* x, std::int64_t count, std::int8_t* q);
float avx512_quantize(const float* x, std::int64_t count, std::int8_t* q);
// x · inverse, saturated; 0 for NaN.
void avx2_requantize(const float* x, std::int64_t count, float inverse, std::int8_t* q);
void avx512_requantize(const float* x, std::int64_t count, float inverse, std::int8_t* q);
// The same as quantize at a given scale, which is returned, or NaN where something is not finite.
float avx2_quantize_at(const float* x, std::int64_t count, float scale, std::int8_t* q);
float avx512_quantize_at(const float* x, std::int64_t count, float scale, std::int8_t* q);

// max |x| as the bits of a float; at least 0x7f800000 where something is not finite.
std::int32_t avx2_largest_bits(const float* x, std::int64_t count);
std::int32_t avx512_largest_bits(const float* x, std::int64_t count);

}  // namespace gossamer::cpu
