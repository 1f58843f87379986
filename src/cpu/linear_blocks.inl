// SPDX-License-Identifier: BSD-3-Clause
// The loop nest of *_linear_bsr_*: a few tokens. Included inside an anonymous namespace behind
// vector.inl and epilogue.inl, after the instruction set has defined `sum_lanes` and, for each
// element type, a BlockStep:
//
//   Value, Input                       element types of the weight and of X
//   kColumns                           inputs of one step
//   load(values), load_first(values, count)
//   load_input(x), first_inputs(x, count)
//   multiply_add(weights, inputs, sum)
//   Sum, zero_sum(), load_sum(p), store_sum(p, sum), total(sum), kMaxTokens
//
// Blocks are read from their first byte to their last. The inputs of a block stay in registers
// while its rows pass by; the sums, a vector a row and token, are in L1.

/// `count` inputs of a block, at most one step: `values` of the first row and input.
template <typename Step, int T>
inline void add_columns(const typename Step::Value* values, std::int64_t row_stride,
                        const typename Step::Input* x, std::int64_t x_stride, std::int64_t count,
                        std::int64_t rows, float* sums) {
  const bool whole = count >= Step::kColumns;
  typename Step::Inputs inputs[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    inputs[t] =
        whole ? Step::load_input(x + t * x_stride) : Step::first_inputs(x + t * x_stride, count);
  }
  for (std::int64_t r = 0; r < rows; ++r, values += row_stride, sums += T * kLanes) {
    const auto weights = whole ? Step::load(values) : Step::load_first(values, count);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      float* sum = sums + t * kLanes;
      Step::store_sum(sum, Step::multiply_add(weights, inputs[t], Step::load_sum(sum)));
    }
  }
}

/// Two whole steps at once, so that sums are loaded and stored half as often.
template <typename Step, int T>
inline void add_two_steps(const typename Step::Value* values, std::int64_t row_stride,
                          const typename Step::Input* x, std::int64_t x_stride, std::int64_t rows,
                          float* sums) {
  typename Step::Inputs first[T];
  typename Step::Inputs second[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    first[t] = Step::load_input(x + t * x_stride);
    second[t] = Step::load_input(x + t * x_stride + Step::kColumns);
  }
  for (std::int64_t r = 0; r < rows; ++r, values += row_stride, sums += T * kLanes) {
    const auto a = Step::load(values);
    const auto b = Step::load(values + Step::kColumns);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      float* sum = sums + t * kLanes;
      Step::store_sum(sum, Step::multiply_add(
                               b, second[t], Step::multiply_add(a, first[t], Step::load_sum(sum))));
    }
  }
}

/// `rows` rows of one block row, from its row `first` on.
template <typename Step, int T>
inline void decode_block_row(const gossamer::cpu::DecodeTask& task, std::int64_t block_row,
                             std::int64_t first, std::int64_t rows, float* sums) {
  using Value = typename Step::Value;
  const auto* x = static_cast<const typename Step::Input*>(task.x);
  for (std::int64_t i = 0; i < rows * T; ++i) {
    Step::store_sum(sums + i * kLanes, Step::zero_sum());
  }
  const std::int64_t columns = task.block_cols;
  const std::int64_t end = task.block_offsets[block_row + 1];
  for (std::int64_t b = task.block_offsets[block_row]; b < end; ++b) {
    const Value* values =
        static_cast<const Value*>(task.values) + (b * task.block_rows + first) * columns;
    const std::int64_t input = task.block_col[b] * columns;
    const std::int64_t count = task.in - input < columns ? task.in - input : columns;
    std::int64_t c = 0;
    if constexpr (T <= kTwoStepTokens) {
      for (; c + 2 * Step::kColumns <= count; c += 2 * Step::kColumns) {
        add_two_steps<Step, T>(values + c, columns, x + input + c, task.x_stride, rows, sums);
      }
    }
    for (; c < count; c += Step::kColumns) {
      add_columns<Step, T>(values + c, columns, x + input + c, task.x_stride, count - c, rows,
                           sums);
    }
  }
}

template <typename Step, int T>
void decode_block_rows(const gossamer::cpu::DecodeTask& task) {
  alignas(64) float sums[kRowsOfSums * T * kLanes];
  for (std::int64_t row = 0; row < task.rows;) {
    const std::int64_t at = task.first_row + row;
    const std::int64_t first = at % task.block_rows;
    std::int64_t rows = task.block_rows - first;
    if (rows > task.rows - row) rows = task.rows - row;
    if (rows > kRowsOfSums) rows = kRowsOfSums;
    decode_block_row<Step, T>(task, at / task.block_rows, first, rows, sums);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int t = 0; t < T; ++t) {
        task.sums[t * task.sums_stride + row + r] =
            Step::total(Step::load_sum(sums + (r * T + t) * kLanes));
      }
    }
    row += rows;
  }
}

template <typename Step>
void decode_blocks(const gossamer::cpu::DecodeTask& task) {
  switch (task.tokens) {
    case 1:
      return decode_block_rows<Step, 1>(task);
    case 2:
      return decode_block_rows<Step, 2>(task);
    case 3:
      return decode_block_rows<Step, 3>(task);
    case 4:
      return decode_block_rows<Step, 4>(task);
    case 5:
      return decode_block_rows<Step, 5>(task);
    case 6:
      return decode_block_rows<Step, 6>(task);
    case 7:
      return decode_block_rows<Step, 7>(task);
    case 8:
      return decode_block_rows<Step, 8>(task);
    default:
      if constexpr (Step::kMaxTokens > 8) return decode_block_rows<Step, 9>(task);
  }
}
