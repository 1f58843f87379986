// SPDX-License-Identifier: BSD-3-Clause
// Tokens to int8, plain loops that the compiler turns into vectors. Included inside an anonymous
// namespace by one translation unit of each instruction set.

#include "cpu/largest.inl"

/// x · inverse to nearest even, |x · inverse| <= 127: the sum with 1.5·2^23 leaves the integer in
/// the lowest bits.
inline void round_all(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  for (std::int64_t k = 0; k < count; ++k) {
    const float shifted = x[k] * inverse + 12582912.0f;
    std::int32_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    q[k] = static_cast<std::int8_t>(bits);
  }
}

float quantize(const float* x, std::int64_t count, std::int8_t* q) {
  const std::int32_t bits = largest_bits(x, count);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof(largest));
  const float inverse = 127.0f / largest;
  const bool is_finite = bits < 0x7f800000;
  if (!is_finite || !(inverse <= 3.4e38f)) {
    for (std::int64_t k = 0; k < count; ++k) q[k] = 0;
    return is_finite ? 0.0f : __builtin_nanf("");
  }
  round_all(x, count, inverse, q);
  return largest / 127.0f;
}

/// x · inverse to nearest even, at most 127 either way; 0 for NaN.
void requantize_all(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  for (std::int64_t k = 0; k < count; ++k) {
    const float steps = x[k] * inverse;
    const float number = steps == steps ? steps : 0.0f;
    const float least = number < 127.0f ? number : 127.0f;
    const float shifted = (least > -127.0f ? least : -127.0f) + 12582912.0f;
    std::int32_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    q[k] = static_cast<std::int8_t>(bits);
  }
}

/// At a given scale; what lies beyond 127 of its steps becomes ±127.
float quantize_at(const float* x, std::int64_t count, float scale, std::int8_t* q) {
  const float inverse = 1.0f / scale;
  std::int32_t largest = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    std::int32_t bits;
    __builtin_memcpy(&bits, x + k, sizeof(bits));
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
    const float steps = x[k] * inverse;
    const float least = steps < 127.0f ? steps : 127.0f;
    const float shifted = (least > -127.0f ? least : -127.0f) + 12582912.0f;
    __builtin_memcpy(&bits, &shifted, sizeof(bits));
    q[k] = static_cast<std::int8_t>(bits);
  }
  if (largest < 0x7f800000) return scale;
  for (std::int64_t k = 0; k < count; ++k) q[k] = 0;
  return __builtin_nanf("");
}
