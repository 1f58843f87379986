// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), W 2:4 in row pairs, float32, any processor.
// A byte of metadata holds four 2-bit positions: slots 0 and 1 of the pair's first row, then of the
// second.
#include <cstdint>
#include <cstring>

#include "cpu/nm24_task.h"

namespace gossamer::cpu {
namespace {

#include "cpu/generic/vector.inl"
//
#include "cpu/epilogue.inl"

constexpr int kMaxTokens = 8;

/// Both rows of a pair for all tokens of the task.
void pair_rows(const Nm24Task& task, std::int64_t pair) {
  float sum[2][kMaxTokens] = {};
  const float* values = task.values + pair * task.values_stride;
  const std::uint8_t* meta = task.meta + pair * task.meta_stride;
  for (std::int64_t group = 0; group < task.groups; ++group) {
    const float* value = values + 4 * group;
    const unsigned positions = meta[group];
    for (std::int64_t t = 0; t < task.tokens; ++t) {
      const float* x = task.x + t * task.x_stride + 4 * group;
      sum[0][t] += value[0] * x[positions & 3] + value[1] * x[positions >> 2 & 3];
      sum[1][t] += value[2] * x[positions >> 4 & 3] + value[3] * x[positions >> 6];
    }
  }
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    for (std::int64_t r = 0; r < 2 && 2 * pair + r < task.out; ++r) {
      const std::int64_t row = 2 * pair + r;
      float* y = task.y + t * task.y_stride + row;
      float result = sum[r][t];
      if (task.first_chunk) {
        if (task.bias != nullptr) result += task.bias[row];
        if (task.residual != nullptr) result += task.residual[t * task.residual_stride + row];
      } else {
        result += *y;
      }
      *y = result;
    }
  }
}

/// The activation of the task's rows.
void activate_rows(const Nm24Task& task) {
  const std::int64_t begin = 2 * task.pair_begin;
  const std::int64_t end = 2 * task.pair_end < task.out ? 2 * task.pair_end : task.out;
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    float* y = task.y + t * task.y_stride + begin;
    finish_token<Float32>(y, nullptr, nullptr, y, end - begin, task.activation);
  }
}

}  // namespace

void generic_linear_nm24_f32(const Nm24Task& task) {
  for (std::int64_t pair = task.pair_begin; pair < task.pair_end; ++pair) pair_rows(task, pair);
  if (task.last_chunk && task.activation != Activation::kNone) activate_rows(task);
}

}  // namespace gossamer::cpu
