// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) in K-blocks, float32, any processor: vectors of four by the
// compiler's vector extension, transposes by plain loops.
#include <bit>
#include <cstdint>
#include <cstring>

#include "cpu/kcsr_task.h"

namespace {

#include "cpu/generic/vector.inl"
//
#include "cpu/epilogue.inl"
#include "cpu/spmm_kcsr.inl"

constexpr int kRegisters = 16;
#include "cpu/spmm_rowpairs.inl"

bool pack_tile(const gossamer::cpu::KcsrPackTask& task) {
  const auto* x = static_cast<const float*>(task.x);
  for (std::int64_t k = 0; k < task.columns; ++k) {
    float* to = task.tile + k * task.lanes;
    for (std::int64_t t = 0; t < task.tokens; ++t) to[t] = x[t * task.x_stride + k];
    for (std::int64_t t = task.tokens; t < task.lanes; ++t) to[t] = 0.0f;
  }
  return true;
}

void store_panel(const gossamer::cpu::KcsrStoreTask& task) {
  constexpr std::int64_t kRows = 128;
  float buffer[kRows];
  for (std::int64_t row = 0; row < task.out.rows; row += kRows) {
    const std::int64_t rows = task.out.rows - row < kRows ? task.out.rows - row : kRows;
    for (std::int64_t t = 0; t < task.out.tokens; ++t) {
      for (std::int64_t i = 0; i < rows; ++i) buffer[i] = task.sums[(row + i) * task.lanes + t];
      finish<Float32>(part_of<Float32>(task.out, buffer, kRows, row, rows, t, 1));
    }
  }
}

void add_one_token(const gossamer::cpu::KcsrAddTask& task) {
  const auto* values = static_cast<const float*>(task.values);
  const auto* x = static_cast<const float*>(task.tile);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    float* sums = task.sums + row * kLanes;
    if (task.first) store(sums, zero());
    // Two sums, so that one addition need not wait for the last.
    float even = 0.0f;
    float odd = 0.0f;
    std::int64_t i = task.begins[row];
    const std::int64_t end = task.ends[row];
    for (; i + 1 < end; i += 2) {
      even += values[i] * x[task.cols[i]];
      odd += values[i + 1] * x[task.cols[i + 1]];
    }
    if (i < end) even += values[i] * x[task.cols[i]];
    sums[0] += even;
    sums[1] += odd;
  }
}

void store_one_token(const gossamer::cpu::KcsrStoreTask& task) {
  constexpr std::int64_t kRows = 128;
  float buffer[kRows];
  for (std::int64_t row = 0; row < task.out.rows; row += kRows) {
    const std::int64_t rows = task.out.rows - row < kRows ? task.out.rows - row : kRows;
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* part = task.sums + (row + i) * kLanes;
      buffer[i] = part[0] + part[1];
    }
    finish<Float32>(part_of<Float32>(task.out, buffer, kRows, row, rows, 0, 1));
  }
}

constexpr gossamer::cpu::KcsrFunctions kFunctions = {
    kLanes,
    pack_tile,
    {add_units<ElementUnit<Float32>, 1>, add_units<ElementUnit<Float32>, 2>,
     add_units<ElementUnit<Float32>, 3>, add_units<ElementUnit<Float32>, 4>,
     add_units<ElementUnit<Float32>, 6>, add_units<ElementUnit<Float32>, 8>},
    store_panel,
    add_one_token,
    store_one_token,
    {}};

}  // namespace

namespace gossamer::cpu {

constinit const KcsrFunctions generic_spmm_f32 = kFunctions;

constinit const KcsrFunctions generic_spmm_rowpairs_f32 =
    with_row_pairs<ElementUnit<Float32>>(kFunctions);

}  // namespace gossamer::cpu
