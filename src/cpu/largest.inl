// SPDX-License-Identifier: BSD-3-Clause
// The largest of some floats, a plain loop that the compiler turns into vectors. Included inside an
// anonymous namespace by one translation unit of each instruction set.

/// max |x| as the bits of a float; at least 0x7f800000 where something is not finite.
inline std::int32_t largest_bits(const float* x, std::int64_t count) {
  std::int32_t largest = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    std::int32_t bits;
    __builtin_memcpy(&bits, x + k, sizeof(bits));
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
