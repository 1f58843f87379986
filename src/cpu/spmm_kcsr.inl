// SPDX-License-Identifier: BSD-3-Clause
// The inner loop of K-blocked kernels. Included inside an anonymous namespace behind the
// instruction set's vector.inl.
//
// A Unit is what one multiply-add takes of a weight, an element or several neighbours of a row:
//
//   Type            what the values are an array of
//   kInputs         inputs of a unit; tiles have a row for each unit
//   broadcast(p)    a unit in every lane
//   multiply_add(weights, inputs, sum)
//   add_sums(a, b)

template <typename Element>
struct ElementUnit {
  using Type = typename Element::Type;
  static constexpr std::int64_t kInputs = 1;
  static Vector broadcast(const Type* p) { return Element::broadcast(p); }
  static Vector multiply_add(Vector w, Vector x, Vector sum) { return ::multiply_add(w, x, sum); }
  static Vector add_sums(Vector a, Vector b) { return add(a, b); }
};

/// One kept unit: a broadcast, and a multiply-add for each vector of the panel, straight from the
/// tile in L1.
template <typename Unit, int NV>
inline void add_unit(const typename Unit::Type* unit, const float* tile_row, Vector (&sum)[NV]) {
  const Vector v = Unit::broadcast(unit);
#pragma GCC unroll 8
  for (int n = 0; n < NV; ++n) {
    sum[n] = Unit::multiply_add(v, load(tile_row + n * kLanes), sum[n]);
  }
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

/// How many units a panel of NV vectors takes at once: fewer than eight chains of multiply-adds do
/// not cover their latency.
constexpr int ways_of(int vectors) { return vectors == 1 ? 4 : vectors < 8 ? 2 : 1; }

template <typename Unit, int NV>
void add_units(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* values = static_cast<const typename Unit::Type*>(task.values);
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
    constexpr int kWays = ways_of(NV);
    if constexpr (kWays > 1) {
      Vector more[kWays - 1][NV];
#pragma GCC unroll 4
      for (int w = 0; w < kWays - 1; ++w) {
        for (int n = 0; n < NV; ++n) more[w][n] = zero();
      }
      for (; i + kWays <= end; i += kWays) {
        add_unit<Unit, NV>(values + i, tile + task.cols[i] * kPanel, sum);
#pragma GCC unroll 4
        for (int w = 1; w < kWays; ++w) {
          add_unit<Unit, NV>(values + i + w, tile + task.cols[i + w] * kPanel, more[w - 1]);
        }
      }
#pragma GCC unroll 4
      for (int w = 0; w < kWays - 1; ++w) {
        for (int n = 0; n < NV; ++n) sum[n] = Unit::add_sums(sum[n], more[w][n]);
      }
    }
    for (; i < end; ++i) add_unit<Unit, NV>(values + i, tile + task.cols[i] * kPanel, sum);
    for (int n = 0; n < NV; ++n) store(sums + n * kLanes, sum[n]);
  }
}
