// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), W in K-blocked CSR, float32, any processor: vectors of four by
// the compiler's vector extension, transposes by plain loops.
#include <cstdint>
#include <cstring>

#include "cpu/kcsr_task.h"

namespace {

using Vector = float __attribute__((vector_size(16)));
constexpr std::int64_t kLanes = 4;

inline Vector zero() { return Vector{}; }
inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
inline Vector broadcast(const float* p) { return Vector{*p, *p, *p, *p}; }
inline Vector add(Vector a, Vector b) { return a + b; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }

#include "cpu/spmm_kcsr.inl"

void pack_tile(const gossamer::cpu::KcsrPackTask& task) {
  for (std::int64_t k = 0; k < task.columns; ++k) {
    float* to = task.tile + k * task.lanes;
    for (std::int64_t t = 0; t < task.tokens; ++t) to[t] = task.x[t * task.x_stride + k];
    for (std::int64_t t = task.tokens; t < task.lanes; ++t) to[t] = 0.0f;
  }
}

void store_panel(const gossamer::cpu::KcsrStoreTask& task) {
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    float* y = task.y + t * task.y_stride;
    for (std::int64_t row = 0; row < task.rows; ++row) {
      float result = task.sums[row * task.lanes + t];
      if (task.residual != nullptr) result += task.residual[t * task.residual_stride + row];
      y[row] = task.relu && result < 0.0f ? 0.0f : result;
    }
  }
}

void add_one_token(const gossamer::cpu::KcsrAddTask& task) {
  for (std::int64_t row = task.row_begin; row < task.row_end; ++row) {
    float* sums = task.sums + (row - task.row_begin) * kLanes;
    if (task.first) {
      store(sums, zero());
      if (task.bias != nullptr) sums[0] = task.bias[row];
    }
    // Two sums, so that one addition need not wait for the last.
    float even = 0.0f;
    float odd = 0.0f;
    std::int64_t i = task.segments[row];
    const std::int64_t end = task.segments[row + 1];
    for (; i + 1 < end; i += 2) {
      even += task.values[i] * task.tile[task.cols[i]];
      odd += task.values[i + 1] * task.tile[task.cols[i + 1]];
    }
    if (i < end) even += task.values[i] * task.tile[task.cols[i]];
    sums[1] += even;
    sums[2] += odd;
  }
}

void store_one_token(const gossamer::cpu::KcsrStoreTask& task) {
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const float* part = task.sums + row * kLanes;
    float result = part[0] + part[1] + part[2];
    if (task.residual != nullptr) result += task.residual[row];
    task.y[row] = task.relu && result < 0.0f ? 0.0f : result;
  }
}

}  // namespace

namespace gossamer::cpu {

const KcsrFunctions generic_spmm_kcsr_f32 = {
    kLanes,
    pack_tile,
    {add_block<1>, add_block<2>, add_block<3>, add_block<4>, add_block<6>, add_block<8>},
    store_panel,
    add_one_token,
    store_one_token};

}  // namespace gossamer::cpu
