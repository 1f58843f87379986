// SPDX-License-Identifier: BSD-3-Clause
// The inner loop of K-blocked kernels. Included inside an anonymous namespace behind the
// instruction set's vector.inl.

/// One kept value: a broadcast, and a multiply-add for each vector of the panel, straight from the
/// tile in L1.
template <typename Element, int NV>
inline void add_value(const typename Element::Type* value, const float* tile_row,
                      Vector (&sum)[NV]) {
  const Vector v = Element::broadcast(value);
#pragma GCC unroll 8
  for (int n = 0; n < NV; ++n) sum[n] = multiply_add(v, load(tile_row + n * kLanes), sum[n]);
}

/// Where a row's block of inputs is a piece of a longer row, the processor cannot guess where the
/// next begins.
constexpr std::int64_t kRowsAhead = 2;
template <typename T>
inline void prefetch_row(const gossamer::cpu::KcsrAddTask& task, const T* values,
                         std::int64_t begin, std::int64_t count) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  __builtin_prefetch(task.cols + begin);
  for (std::int64_t i = 0; i < count; i += kLine) __builtin_prefetch(values + begin + i);
}

template <typename Element, int NV>
void add_block(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* values = static_cast<const typename Element::Type*>(task.values);
  const auto* tile = static_cast<const float*>(task.tile);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    float* sums = task.sums + row * kPanel;
    Vector sum[NV];
    for (int n = 0; n < NV; ++n) sum[n] = task.first ? zero() : load(sums + n * kLanes);

    std::int64_t i = task.begins[row];
    const std::int64_t end = task.ends[row];
    if (row + kRowsAhead < task.rows) {
      prefetch_row(task, values, task.begins[row + kRowsAhead], end - i);
    }
    if constexpr (NV < 8) {
      // Fewer than eight chains of multiply-adds do not cover their latency: take two values at
      // once.
      Vector odd[NV];
      for (int n = 0; n < NV; ++n) odd[n] = zero();
      for (; i + 1 < end; i += 2) {
        add_value<Element, NV>(values + i, tile + task.cols[i] * kPanel, sum);
        add_value<Element, NV>(values + i + 1, tile + task.cols[i + 1] * kPanel, odd);
      }
      for (int n = 0; n < NV; ++n) sum[n] = add(sum[n], odd[n]);
    }
    for (; i < end; ++i) add_value<Element, NV>(values + i, tile + task.cols[i] * kPanel, sum);
    for (int n = 0; n < NV; ++n) store(sums + n * kLanes, sum[n]);
  }
}
