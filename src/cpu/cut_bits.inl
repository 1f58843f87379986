// SPDX-License-Identifier: BSD-3-Clause
// Rounding to eight bits. Included inside an anonymous namespace by the files of quantization.

/// The nearest whole number (ties to even) of at most 127 either way, in the lowest bits; 127 for
/// NaN. The sum with 1.5·2^23 leaves it there. Bits of floats are ordered as integers are, whose
/// comparisons, unlike those of floats, compilers turn into vectors.
inline std::int32_t cut_bits(float steps) {
  constexpr std::int32_t kZero = 0x4b400000;  // of 1.5·2^23
  const float shifted = steps + 12582912.0f;
  std::int32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = bits > kZero + 127 ? kZero + 127 : bits;
  return bits < kZero - 127 ? kZero - 127 : bits;
}
