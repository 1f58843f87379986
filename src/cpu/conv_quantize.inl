// SPDX-License-Identifier: BSD-3-Clause
// What an int8 convolution does beside its sums, plain loops that the compiler turns into vectors.
// Included inside an anonymous namespace by one translation unit of each instruction set.

/// x to the nearest whole number (ties to even) of at most 127 either way, in the lowest bits: the
/// sum with 1.5·2^23 leaves it there.
inline std::uint32_t rounded(float x) {
  const float least = x < 127.0f ? x : 127.0f;
  const float shifted = (least > -127.0f ? least : -127.0f) + 12582912.0f;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  return bits;
}

/// `inputs` 4: bytes, plus 128; 2: 16 bits, signed.
template <int inputs>
inline void quantize_rows(const float* const (&from)[inputs], const float* inverse,
                          std::int64_t lanes, std::uint32_t* to) {
  constexpr unsigned kBits = 32 / inputs;
  constexpr std::uint32_t kLow = inputs == 4 ? 0xffu : 0xffffu;
  constexpr std::uint32_t kFlip = inputs == 4 ? 0x80808080u : 0u;
  for (std::int64_t t = 0; t < lanes; ++t) {
    std::uint32_t word = 0;
#pragma GCC unroll 4
    for (int j = 0; j < inputs; ++j) {
      word |= (rounded(from[j][t] * inverse[t]) & kLow) << (kBits * static_cast<unsigned>(j));
    }
    to[t] = word ^ kFlip;
  }
}

template <int inputs>
void quantize_tile(const gossamer::cpu::ConvQuantizeTask& task) {
  constexpr std::int64_t kMaxLanes = 128;
  static constexpr float kZeros[kMaxLanes] = {};
  for (std::int64_t k = 0; inputs * k < task.columns; ++k) {
    const float* from[inputs];
    for (int j = 0; j < inputs; ++j) {
      const std::int64_t column = inputs * k + j;
      from[j] = column < task.columns ? task.from + column * task.lanes : kZeros;
    }
    quantize_rows<inputs>(from, task.inverse, task.lanes, task.to + k * task.lanes);
  }
}

void dequantize_sums(const gossamer::cpu::ConvDequantizeTask& task) {
  for (std::int64_t row = 0; row < task.rows; ++row) {
    float* sums = task.sums + row * task.lanes;
    const std::int32_t correction = task.corrections == nullptr ? 0 : task.corrections[row];
    const float scale = task.weight_scale[row];
    for (std::int64_t t = 0; t < task.lanes; ++t) {
      std::int32_t sum;
      __builtin_memcpy(&sum, sums + t, sizeof(sum));
      sums[t] = static_cast<float>(sum - correction) * (scale * task.x_scale[t]);
    }
  }
}
