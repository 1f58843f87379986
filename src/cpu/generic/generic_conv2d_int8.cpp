// SPDX-License-Identifier: BSD-3-Clause
// The steps of an int8 convolution for any processor: pairs of inputs in 16 bits each.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/conv_task.h"
#include "cpu/kcsr_task.h"

namespace {

#include "cpu/conv_quantize.inl"

constexpr std::int64_t kLanes = 4;

/// The signed 16 bits at `shift` of a word.
inline std::int32_t half(std::uint32_t word, unsigned shift) {
  return static_cast<std::int16_t>(word >> shift & 0xffffu);
}

/// sum[t] += weights · inputs[t] for one unit and all lanes of a panel; 32-bit integers.
inline void add_pair(std::uint32_t unit, const std::byte* inputs, std::int64_t lanes,
                     std::byte* sums) {
  const std::int32_t low = half(unit, 0);
  const std::int32_t high = half(unit, 16);
  for (std::int64_t t = 0; t < lanes; ++t) {
    std::uint32_t pair;
    std::int32_t sum;
    std::memcpy(&pair, inputs + 4 * t, 4);
    std::memcpy(&sum, sums + 4 * t, 4);
    sum += low * half(pair, 0) + high * half(pair, 16);
    std::memcpy(sums + 4 * t, &sum, 4);
  }
}

template <int vectors>
void add_pairs(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = vectors * kLanes;
  const auto* units = static_cast<const std::uint32_t*>(task.values);
  const auto* tile = static_cast<const std::byte*>(task.tile);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    auto* sums = reinterpret_cast<std::byte*>(task.sums + row * kPanel);
    if (task.first) std::memset(sums, 0, 4 * kPanel);
    for (std::uint32_t i = task.begins[row]; i < task.ends[row]; ++i) {
      add_pair(units[i], tile + task.cols[i] * kPanel * 4, kPanel, sums);
    }
  }
}

}  // namespace

namespace gossamer::cpu {

constinit const KcsrFunctions generic_spmm_int8_pairs = {
    kLanes,
    nullptr,
    {add_pairs<1>, add_pairs<2>, add_pairs<3>, add_pairs<4>, add_pairs<6>, add_pairs<8>},
    nullptr,
    nullptr,
    nullptr,
    {},
    2};

constinit const ConvQuantizeFunctions generic_conv2d_pairs = {quantize_tile<2>, make_words<2>,
                                                              nullptr, dequantize_sums, 2};

void generic_bitmask_int8_pairs(const BitmaskUnitTask& task) {
  const std::int64_t row_bytes = (task.in + 7) / 8;
  const auto* value = static_cast<const std::int8_t*>(task.values);
  std::uint32_t count = 0;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::uint8_t* bits = task.bits + row * row_bytes;
    std::uint32_t* segment = task.segments + row;
    for (std::int64_t column = 0; column < task.in; column += 2) {
      if (column % task.block == 0) {
        *segment = count;
        segment += task.rows;
      }
      const unsigned kept = bits[column / 8] >> (column % 8) & 3u;
      if (kept == 0) continue;
      const std::uint32_t low = (kept & 1u) != 0 ? static_cast<std::uint16_t>(*value++) : 0u;
      const std::uint32_t high = (kept & 2u) != 0 ? static_cast<std::uint16_t>(*value++) : 0u;
      task.units[count] = low | high << 16;
      task.cols[count] = static_cast<std::uint8_t>(column % task.block / 2);
      ++count;
    }
    *segment = count;
  }
}

}  // namespace gossamer::cpu
