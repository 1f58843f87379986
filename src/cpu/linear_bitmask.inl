// SPDX-License-Identifier: BSD-3-Clause
// The loop nest of *_linear_bitmask_*: weights are loaded sparse and computed dense. Included
// inside an anonymous namespace behind vector.inl and epilogue.inl, after the instruction set has
// defined `sum_lanes`, `kMaxSums` (vectors of sums that fit the registers) and, for each element
// type, a Step:
//
//   Value, Input         element types of the weight and of X
//   kColumns             inputs of one step
//   Mask                 its bits
//   load_mask(bits)      and load_mask(bits, count) for the last columns of a row
//   count(mask)
//   expand(values, mask) the next values at the places of the set bits, zeros elsewhere
//   load_input(x)
//   multiply_add(weights, inputs, mask, sum)   what is pruned must not reach the sum
//   Sum, zero_sum(), add_sums(a, b), total(sum)
//   kMaxTokens           8, or 9

/// R rows × T tokens. Rows follow each other in memory, so the values to be fetched next lie as far
/// behind the last row as has been used of all of them.
template <typename Step, int R, int T>
inline void decode_rows(const gossamer::cpu::DecodeTask& task, std::int64_t row) {
  using Value = typename Step::Value;
  using Input = typename Step::Input;
  constexpr std::int64_t kColumns = Step::kColumns;
  constexpr std::int64_t kBitsAheadBytes = 1024;
  constexpr std::int64_t kAheadBytes = 6144;
  // Several sums where there are few, so that the multiply-adds' latency is hidden.
  constexpr int kChains = R * T == 1 ? 4 : R * T <= 3 ? 2 : 1;
  typename Step::Sum sum[R][T][kChains];
  const Value* values[R];
  const std::uint8_t* bits[R];
  for (int r = 0; r < R; ++r) {
    values[r] = static_cast<const Value*>(task.values) + task.row_offsets[row + r];
    bits[r] = task.bits + (row + r) * task.row_bytes;
    for (int t = 0; t < T; ++t) {
      for (int c = 0; c < kChains; ++c) sum[r][t][c] = Step::zero_sum();
    }
  }
  const Input* x = static_cast<const Input*>(task.x);
  const Value* const first = values[0];

  const auto step = [&](auto&& mask_of, std::int64_t column,
                        int chain) __attribute__((always_inline)) {
    typename Step::Mask mask[R];
    typename Step::Weights weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      mask[r] = mask_of(bits[r] + column / 8);
      weights[r] = Step::expand(values[r], mask[r]);
      values[r] += Step::count(mask[r]);
    }
    const Value* ahead = values[R - 1] + (R == 1 ? 0 : values[0] - first);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(reinterpret_cast<const char*>(ahead) + kAheadBytes + 64 * r);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const auto inputs = Step::load_input(x + t * task.x_stride + column);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[r][t][chain] = Step::multiply_add(weights[r], inputs, mask[r], sum[r][t][chain]);
      }
    }
  };
  const auto whole = [](const std::uint8_t* p)
                         __attribute__((always_inline)) { return Step::load_mask(p); };

  std::int64_t column = 0;
  for (; column + kColumns * kChains <= task.in; column += kColumns * kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) step(whole, column + c * kColumns, c);
    __builtin_prefetch(bits[R - 1] + column / 8 + kBitsAheadBytes);
  }
  if constexpr (kChains > 1) {
    for (; column + kColumns <= task.in; column += kColumns) step(whole, column, 0);
  }
  if (column < task.in) {
    const std::int64_t left = task.in - column;
    step([left](const std::uint8_t* p) { return Step::load_mask(p, left); }, column, 0);
  }

  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      auto all = sum[r][t][0];
      for (int c = 1; c < kChains; ++c) all = Step::add_sums(all, sum[r][t][c]);
      task.sums[t * task.sums_stride + row + r] = Step::total(all);
    }
  }
}

/// Four or two rows at a time, as far as their sums fit the registers: they share the inputs, which
/// would otherwise be loaded for every one. With one token that gains nothing.
template <typename Step, int T>
inline void decode_all_rows(const gossamer::cpu::DecodeTask& task) {
  constexpr int R = T == 1 ? 1 : 4 * T <= kMaxSums ? 4 : 2 * T <= kMaxSums ? 2 : 1;
  std::int64_t row = 0;
  for (; row + R <= task.rows; row += R) decode_rows<Step, R, T>(task, row);
  for (; row < task.rows; ++row) decode_rows<Step, 1, T>(task, row);
}

template <typename Step>
void decode(const gossamer::cpu::DecodeTask& task) {
  switch (task.tokens) {
    case 1:
      return decode_all_rows<Step, 1>(task);
    case 2:
      return decode_all_rows<Step, 2>(task);
    case 3:
      return decode_all_rows<Step, 3>(task);
    case 4:
      return decode_all_rows<Step, 4>(task);
    case 5:
      return decode_all_rows<Step, 5>(task);
    case 6:
      return decode_all_rows<Step, 6>(task);
    case 7:
      return decode_all_rows<Step, 7>(task);
    case 8:
      return decode_all_rows<Step, 8>(task);
    default:
      if constexpr (Step::kMaxTokens > 8) return decode_all_rows<Step, 9>(task);
  }
}

template <typename Element>
void widen(const void* from, std::int64_t count, void* memory) {
  auto* to = static_cast<float*>(memory);
  const auto* p = static_cast<const typename Element::Type*>(from);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, Element::load(p + i));
  if (i < count) Float32::store_first(to + i, Element::load_first(p + i, count - i), count - i);
}

/// x − x is zero unless x is infinite or NaN; NaN then stays in the sum.
template <typename Element>
bool is_finite(const void* from, std::int64_t count) {
  const auto* p = static_cast<const typename Element::Type*>(from);
  const Vector minus = repeat(-1.0f);
  Vector sum = zero();
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector v = Element::load(p + i);
    sum = add(sum, multiply_add(v, minus, v));
  }
  if (i < count) {
    const Vector v = Element::load_first(p + i, count - i);
    sum = add(sum, multiply_add(v, minus, v));
  }
  return sum_lanes(sum) == 0.0f;
}
