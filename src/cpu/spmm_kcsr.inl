// SPDX-License-Identifier: BSD-3-Clause
// The inner loop of *_spmm_kcsr_f32, included by each instruction-set folder inside an anonymous
// namespace after it has defined `Vector`, kLanes, load, store, broadcast, zero, add and
// multiply_add.

/// One kept value: a broadcast, and a multiply-add for each vector of the panel, straight from the
/// tile in L1.
template <int NV>
inline void add_value(const float* value, const float* tile_row, Vector (&sum)[NV]) {
  const Vector v = broadcast(value);
#pragma GCC unroll 8
  for (int n = 0; n < NV; ++n) sum[n] = multiply_add(v, load(tile_row + n * kLanes), sum[n]);
}

template <int NV>
void add_block(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  for (std::int64_t row = task.row_begin; row < task.row_end; ++row) {
    float* sums = task.sums + (row - task.row_begin) * kPanel;
    Vector sum[NV];
    if (task.first) {
      const Vector start = task.bias == nullptr ? zero() : broadcast(task.bias + row);
      for (int n = 0; n < NV; ++n) sum[n] = start;
    } else {
      for (int n = 0; n < NV; ++n) sum[n] = load(sums + n * kLanes);
    }

    std::int64_t i = task.segments[row];
    const std::int64_t end = task.segments[row + 1];
    if constexpr (NV < 8) {
      // Fewer than eight chains of multiply-adds do not cover their latency: take two values at
      // once.
      Vector odd[NV];
      for (int n = 0; n < NV; ++n) odd[n] = zero();
      for (; i + 1 < end; i += 2) {
        add_value<NV>(task.values + i, task.tile + task.cols[i] * kPanel, sum);
        add_value<NV>(task.values + i + 1, task.tile + task.cols[i + 1] * kPanel, odd);
      }
      for (int n = 0; n < NV; ++n) sum[n] = add(sum[n], odd[n]);
    }
    for (; i < end; ++i) add_value<NV>(task.values + i, task.tile + task.cols[i] * kPanel, sum);
    for (int n = 0; n < NV; ++n) store(sums + n * kLanes, sum[n]);
  }
}
