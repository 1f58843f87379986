// SPDX-License-Identifier: BSD-3-Clause
// What an int8 convolution does beside its sums, plain loops that the compiler turns into vectors.
// Included inside an anonymous namespace by one translation unit of each instruction set.

#include "cpu/cut_bits.inl"

/// x to the nearest whole number of at most 127 either way, in the lowest bits.
inline std::uint32_t rounded(float x) { return static_cast<std::uint32_t>(cut_bits(x)); }

/// The lowest bits of a whole number as part j of a word of so many inputs.
template <int inputs>
inline std::uint32_t place(std::uint32_t bits, int j) {
  constexpr std::uint32_t kLow = inputs == 4 ? 0xffu : 0xffffu;
  constexpr unsigned kBits = 32 / inputs;
  return (bits & kLow) << (kBits * static_cast<unsigned>(j));
}

/// `inputs` 4: bytes, plus 128; 2: 16 bits, signed.
template <int inputs>
inline void quantize_rows(const float* const (&from)[inputs], const float* inverse,
                          std::int64_t lanes, std::uint32_t* to) {
  constexpr std::uint32_t kFlip = inputs == 4 ? 0x80808080u : 0u;
  for (std::int64_t t = 0; t < lanes; ++t) {
    std::uint32_t word = 0;
#pragma GCC unroll 4
    for (int j = 0; j < inputs; ++j) {
      word |= place<inputs>(rounded(from[j][t] * inverse[t]), j);
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

template <int inputs>
void make_words(const gossamer::cpu::ConvWordsTask& task) {
  const auto word = [&](const float* from, std::int64_t plane) __attribute__((always_inline)) {
    std::uint32_t bits = 0;
#pragma GCC unroll 4
    for (int j = 0; j < inputs; ++j) {
      bits |= place<inputs>(rounded(from[j * plane] * task.inverse), j);
    }
    return bits;
  };
  if (task.step == 1) {
    for (std::int64_t i = 0; i < task.count; ++i) task.to[i] = word(task.from + i, task.plane);
  } else {
    for (std::int64_t i = 0; i < task.count; ++i) task.to[i] = word(task.from + inputs * i, 1);
  }
}

[[maybe_unused]] void make_unsigned(std::uint32_t* words, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) words[i] ^= 0x80808080u;
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
