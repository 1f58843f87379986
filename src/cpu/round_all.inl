// SPDX-License-Identifier: BSD-3-Clause
// Floats to int8, a plain loop that the compiler turns into vectors. Included inside an anonymous
// namespace.

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
