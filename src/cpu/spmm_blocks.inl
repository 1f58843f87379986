// SPDX-License-Identifier: BSD-3-Clause
// The inner loop of block kernels. Included inside an anonymous namespace behind vector.inl
// and spmm_kcsr.inl, after the instruction set has defined kRegisters.
//
// A block is a small dense product: every vector of the tile that is loaded serves G rows. Units as
// in spmm_kcsr.inl.

/// G rows of one block row for all its blocks in the tile. `values` and `sums` are those of the
/// first of the G rows.
template <typename Unit, int G, int NV>
inline void add_block_rows(const gossamer::cpu::KcsrAddTask& task, std::int64_t begin,
                           std::int64_t end, const typename Unit::Type* values, float* sums) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* tile = static_cast<const float*>(task.tile);
  const std::int64_t width = task.block_cols / Unit::kInputs;
  const std::int64_t block_size = task.block_rows * width;
  Vector sum[G][NV];
  for (int g = 0; g < G; ++g) {
    for (int n = 0; n < NV; ++n) {
      sum[g][n] = task.first ? zero() : load(sums + g * kPanel + n * kLanes);
    }
  }
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t input = task.block_col[i] * task.block_cols - task.first_input;
    const std::int64_t inputs =
        task.columns - input < task.block_cols ? task.columns - input : task.block_cols;
    const std::int64_t units = (inputs + Unit::kInputs - 1) / Unit::kInputs;
    const typename Unit::Type* block = values + i * block_size;
    const float* row = tile + input / Unit::kInputs * kPanel;
    for (std::int64_t c = 0; c < units; ++c, row += kPanel) {
      Vector weight[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) weight[g] = Unit::broadcast(block + g * width + c);
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) {
        const Vector x = load(row + n * kLanes);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[g][n] = Unit::multiply_add(weight[g], x, sum[g][n]);
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int n = 0; n < NV; ++n) store(sums + g * kPanel + n * kLanes, sum[g][n]);
  }
}

/// Groups of four rows where sums, weights and an input fit the registers, then of two, then single
/// ones.
template <typename Unit, int NV>
void add_blocks(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* values = static_cast<const typename Unit::Type*>(task.values);
  const std::int64_t width = task.block_cols / Unit::kInputs;
  for (std::int64_t first = 0, b = 0; first < task.rows; first += task.block_rows, ++b) {
    const std::int64_t begin = task.begins[b];
    const std::int64_t end = task.ends[b];
    std::int64_t row = 0;
    if constexpr (4 * NV + 5 <= kRegisters) {
      for (; row + 4 <= task.block_rows; row += 4) {
        add_block_rows<Unit, 4, NV>(task, begin, end, values + row * width,
                                    task.sums + (first + row) * kPanel);
      }
    }
    if constexpr (2 * NV + 3 <= kRegisters) {
      for (; row + 2 <= task.block_rows; row += 2) {
        add_block_rows<Unit, 2, NV>(task, begin, end, values + row * width,
                                    task.sums + (first + row) * kPanel);
      }
    }
    for (; row < task.block_rows; ++row) {
      add_block_rows<Unit, 1, NV>(task, begin, end, values + row * width,
                                  task.sums + (first + row) * kPanel);
    }
  }
}
