// SPDX-License-Identifier: BSD-3-Clause
// Tokens to int8, plain loops that the compiler turns into vectors. Included inside an anonymous
// namespace by one translation unit of each instruction set.

#include "cpu/cut_bits.inl"
#include "cpu/largest.inl"

/// `round`: x · inverse to nearest even, |x · inverse| <= 127.
template <void (*round)(const float*, std::int64_t, float, std::int8_t*)>
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
  round(x, count, inverse, q);
  return largest / 127.0f;
}

/// x · inverse to nearest even, at most 127 either way.
inline void round_and_cut(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  for (std::int64_t k = 0; k < count; ++k) {
    q[k] = static_cast<std::int8_t>(cut_bits(x[k] * inverse));
  }
}

/// The same, and 0 for NaN.
void requantize_all(const float* x, std::int64_t count, float inverse, std::int8_t* q) {
  for (std::int64_t k = 0; k < count; ++k) {
    const float steps = x[k] * inverse;
    std::int32_t bits;
    __builtin_memcpy(&bits, &steps, sizeof(bits));
    const std::int32_t is_number = -static_cast<std::int32_t>((bits & 0x7fffffff) <= 0x7f800000);
    q[k] = static_cast<std::int8_t>(cut_bits(steps) & is_number);
  }
}

/// At a given scale; what lies beyond 127 of its steps becomes ±127. A piece at a time, whose
/// second reading finds it in L1: one loop for both would mix widths, and is slower.
float quantize_at(const float* x, std::int64_t count, float scale, std::int8_t* q) {
  constexpr std::int64_t kPiece = 2048;
  const float inverse = 1.0f / scale;
  std::int32_t largest = 0;
  for (std::int64_t k = 0; k < count; k += kPiece) {
    const std::int64_t length = count - k < kPiece ? count - k : kPiece;
    const std::int32_t bits = largest_bits(x + k, length);
    largest = bits > largest ? bits : largest;
    round_and_cut(x + k, length, inverse, q + k);
  }
  if (largest < 0x7f800000) return scale;
  for (std::int64_t k = 0; k < count; ++k) q[k] = 0;
  return __builtin_nanf("");
}
