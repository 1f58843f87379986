// SPDX-License-Identifier: BSD-3-Clause
// The inner loops of kernels over row pairs. Included inside an anonymous namespace behind
// spmm_kcsr.inl and a constant kRegisters, how many vectors the instruction set has.
//
// A register tile is the sums of two rows. Of a column that both keep, X is loaded once:
//
//   shared   NV loads and 2 broadcasts     for 2·NV multiply-adds
//   alone    NV loads and 1 broadcast      for NV
//
// Where the registers do not hold two rows of sums the rows of a pair are taken in turns.

/// What has been read of a panel's block.
template <typename T>
struct PairStream {
  const T* values;
  const std::uint8_t* cols;
};

template <int NV>
[[gnu::always_inline]] inline void load_sums(const float* sums, bool first, Vector (&sum)[NV]) {
#pragma GCC unroll 8
  for (int n = 0; n < NV; ++n) sum[n] = first ? zero() : load(sums + n * kLanes);
}

template <int NV>
[[gnu::always_inline]] inline void store_sums(float* sums, const Vector (&sum)[NV]) {
#pragma GCC unroll 8
  for (int n = 0; n < NV; ++n) store(sums + n * kLanes, sum[n]);
}

/// How many columns narrow panels take at once: the sums of two rows are too few chains of
/// multiply-adds to cover their latency, which takes six, or as many as the unit says.
template <typename Unit>
constexpr int pair_ways(int vectors) {
  int chains = 6;
  if constexpr (requires { Unit::kChains; }) chains = Unit::kChains;
  const int ways = (chains + 2 * vectors - 1) / (2 * vectors);
  return ways == 1 ? 1 : ways == 2 ? 2 : 4;
}

template <typename Unit, int NV>
[[gnu::always_inline]] inline void add_shared(const typename Unit::Type* values,
                                              const float* tile_row, Vector (&a)[NV],
                                              Vector (&b)[NV]) {
  const Vector first = Unit::broadcast(values);
  const Vector second = Unit::broadcast(values + 1);
#pragma GCC unroll 8
  for (int n = 0; n < NV; ++n) {
    const Vector inputs = in_register(load(tile_row + n * kLanes));
    a[n] = Unit::multiply_add(first, inputs, a[n]);
    b[n] = Unit::multiply_add(second, inputs, b[n]);
  }
}

template <typename Unit, int NV>
[[gnu::always_inline]] inline void add_pair_together(const gossamer::cpu::KcsrAddTask& task,
                                                     int shared, int alone, float* first_sums,
                                                     float* second_sums,
                                                     PairStream<typename Unit::Type>& stream) {
  constexpr std::int64_t kPanel = NV * kLanes;
  constexpr int kWays = pair_ways<Unit>(NV);
  const auto* tile = static_cast<const float*>(task.tile);
  const auto* values = stream.values;
  const std::uint8_t* cols = stream.cols;
  Vector a[kWays][NV];
  Vector b[kWays][NV];
  load_sums(first_sums, task.first, a[0]);
  load_sums(second_sums, task.first, b[0]);
#pragma GCC unroll 4
  for (int w = 1; w < kWays; ++w) {
    load_sums(first_sums, true, a[w]);
    load_sums(second_sums, true, b[w]);
  }
  int i = shared;
  if constexpr (kWays > 1) {
    for (; i >= kWays; i -= kWays, cols += kWays, values += 2 * kWays) {
#pragma GCC unroll 4
      for (int w = 0; w < kWays; ++w) {
        add_shared<Unit, NV>(values + 2 * w, tile + cols[w] * kPanel, a[w], b[w]);
      }
    }
  }
  for (; i > 0; --i, ++cols, values += 2) {
    add_shared<Unit, NV>(values, tile + *cols * kPanel, a[0], b[0]);
  }
  i = alone;
  if constexpr (kWays > 1) {
    for (; i >= kWays; i -= kWays, cols += 2 * kWays, values += 2 * kWays) {
#pragma GCC unroll 4
      for (int w = 0; w < kWays; ++w) {
        add_unit<Unit, NV>(values + 2 * w, tile + cols[2 * w] * kPanel, a[w]);
        add_unit<Unit, NV>(values + 2 * w + 1, tile + cols[2 * w + 1] * kPanel, b[w]);
      }
    }
  }
  for (; i > 0; --i, cols += 2, values += 2) {
    add_unit<Unit, NV>(values, tile + cols[0] * kPanel, a[0]);
    add_unit<Unit, NV>(values + 1, tile + cols[1] * kPanel, b[0]);
  }
#pragma GCC unroll 4
  for (int w = 1; w < kWays; ++w) {
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) {
      a[0][n] = Unit::add_sums(a[0][n], a[w][n]);
      b[0][n] = Unit::add_sums(b[0][n], b[w][n]);
    }
  }
  store_sums(first_sums, a[0]);
  store_sums(second_sums, b[0]);
  stream = {values, cols};
}

/// `half`: 0 of the first row, 1 of the second.
template <typename Unit, int NV>
[[gnu::always_inline]] inline void add_half(const gossamer::cpu::KcsrAddTask& task, int shared,
                                            int alone, int half, float* sums,
                                            const PairStream<typename Unit::Type>& stream) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* tile = static_cast<const float*>(task.tile);
  const auto* values = stream.values + half;
  const std::uint8_t* cols = stream.cols;
  Vector sum[NV];
  load_sums(sums, task.first, sum);
  for (int i = 0; i < shared; ++i, ++cols, values += 2) {
    add_unit<Unit, NV>(values, tile + *cols * kPanel, sum);
  }
  cols += half;
  for (int i = 0; i < alone; ++i, cols += 2, values += 2) {
    add_unit<Unit, NV>(values, tile + *cols * kPanel, sum);
  }
  store_sums(sums, sum);
}

template <typename Unit, int NV>
[[gnu::always_inline]] inline void add_single(const gossamer::cpu::KcsrAddTask& task, int count,
                                              float* sums,
                                              PairStream<typename Unit::Type>& stream) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* tile = static_cast<const float*>(task.tile);
  Vector sum[NV];
  load_sums(sums, task.first, sum);
  for (int i = 0; i < count; ++i, ++stream.cols, ++stream.values) {
    add_unit<Unit, NV>(stream.values, tile + *stream.cols * kPanel, sum);
  }
  store_sums(sums, sum);
}

template <typename Unit, int NV>
void add_row_pairs(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  constexpr bool kTogether = 2 * NV + 3 <= kRegisters;
  constexpr std::int64_t kRows = gossamer::cpu::kRowPairsRows;
  for (std::int64_t first = 0; first < task.rows; first += kRows) {
    const std::int64_t rows = task.rows - first < kRows ? task.rows - first : kRows;
    const std::int64_t* segment =
        task.pair_segments + 3 * (first / kRows * task.block_count + task.block_index);
    const std::int64_t place = first * task.block_count + task.block_index * rows;
    const std::uint8_t* row = task.pair_rows + place;
    const std::uint8_t* counts = task.pair_counts + place;
    float* sums = task.sums + first * kPanel;
    PairStream<typename Unit::Type> stream{
        static_cast<const typename Unit::Type*>(task.values) + segment[0], task.cols + segment[1]};
    const std::int64_t paired = 2 * segment[2];
    for (std::int64_t i = 0; i < paired; i += 2) {
      const int shared = counts[i];
      const int alone = counts[i + 1];
      float* first_sums = sums + row[i] * kPanel;
      float* second_sums = sums + row[i + 1] * kPanel;
      if constexpr (kTogether) {
        add_pair_together<Unit, NV>(task, shared, alone, first_sums, second_sums, stream);
      } else {
        add_half<Unit, NV>(task, shared, alone, 0, first_sums, stream);
        add_half<Unit, NV>(task, shared, alone, 1, second_sums, stream);
        stream.values += 2 * (shared + alone);
        stream.cols += shared + 2 * alone;
      }
    }
    for (std::int64_t i = paired; i < rows; ++i) {
      add_single<Unit, NV>(task, counts[i], sums + row[i] * kPanel, stream);
    }
  }
}

template <typename Unit>
constexpr gossamer::cpu::KcsrFunctions with_row_pairs(gossamer::cpu::KcsrFunctions functions) {
  return {functions.vector_lanes,
          functions.pack,
          {add_row_pairs<Unit, 1>, add_row_pairs<Unit, 2>, add_row_pairs<Unit, 3>,
           add_row_pairs<Unit, 4>, add_row_pairs<Unit, 6>, add_row_pairs<Unit, 8>},
          functions.store,
          nullptr,
          nullptr,
          {},
          functions.word_inputs};
}
