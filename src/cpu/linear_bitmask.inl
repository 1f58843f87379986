// SPDX-License-Identifier: BSD-3-Clause
// The loop nest of *_linear_bitmask_*: weights are loaded sparse and computed dense. Included
// inside an anonymous namespace behind vector.inl and epilogue.inl, after the instruction set has
// defined `kMaxSums` (vectors of sums that fit the registers) and, for each element type, a Step:
//
//   Value, Input         element types of the weight and of X
//   kColumns             inputs of one step
//   Mask                 its bits
//   load_mask(bits)      and load_mask(bits, count) for the last columns of a row
//   count(mask)
//   expand(values, mask) the next values at the places of the set bits, zeros elsewhere
//   load_input(x)
//   multiply_add(weights, inputs, mask, sum)   what is pruned must not reach the sum
//   Sum, zero_sum(), add_sums(a, b)
//   totals<N>(sums)      the sums of the lanes of N vectors, at most kLanes, a lane each
//   kMaxTokens           8, or 9

/// sums[t][row … row + R) of R·T vectors. Summed up together, which takes a third of the
/// instructions of doing it one by one: of short rows that would be a fourth of the time.
template <typename Step, int R, int T>
[[gnu::always_inline]] inline void store_totals(const typename Step::Sum (&sum)[R][T], float* sums,
                                                std::int64_t stride) {
  constexpr int kTokens = kLanes / R < T ? kLanes / R : T;  // of one vector of totals
#pragma GCC unroll 16
  for (int first = 0; first < T; first += kTokens) {
    typename Step::Sum group[kTokens * R];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        group[t * R + r] = first + t < T ? sum[r][first + t] : Step::zero_sum();
      }
    }
    alignas(64) float totals[kLanes];
    store(totals, Step::template totals<kTokens * R>(group));
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= T) continue;
      __builtin_memcpy(sums + (first + t) * stride, totals + t * R, R * sizeof(float));
    }
  }
}

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
  // A step takes half a line of values at 50 %, so a line is asked for in every second one.
  constexpr int kSteps = kChains == 1 ? 2 : kChains;
  typename Step::Sum sum[kChains][R][T];
  const Value* values[R];
  const std::uint8_t* bits[R];
  // Loops over sums are unrolled before anything else, or the compiler keeps sums in memory.
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    values[r] = static_cast<const Value*>(task.values) + task.row_offsets[row + r];
    bits[r] = task.bits + (row + r) * task.row_bytes;
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) sum[c][r][t] = Step::zero_sum();
    }
  }
  const Input* x = static_cast<const Input*>(task.x);
  const Value* const first = values[0];

  const auto step = [&](auto&& mask_of, std::int64_t column, int chain,
                        bool fetch) __attribute__((always_inline)) {
    typename Step::Mask mask[R];
    typename Step::Weights weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      mask[r] = mask_of(bits[r] + column / 8);
      weights[r] = Step::expand(values[r], mask[r]);
      values[r] += Step::count(mask[r]);
    }
    if (fetch) {
      const Value* ahead = values[R - 1] + (R == 1 ? 0 : values[0] - first);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(reinterpret_cast<const char*>(ahead) + kAheadBytes + 64 * r);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      auto inputs = Step::load_input(x + t * task.x_stride + column);
      if constexpr (R > 1) inputs = in_register(inputs);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[chain][r][t] = Step::multiply_add(weights[r], inputs, mask[r], sum[chain][r][t]);
      }
    }
  };
  const auto whole = [](const std::uint8_t* p)
                         __attribute__((always_inline)) { return Step::load_mask(p); };

  std::int64_t column = 0;
  for (; column + kColumns * kSteps <= task.in; column += kColumns * kSteps) {
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s) {
      step(whole, column + s * kColumns, s % kChains, s % 2 == 1);
    }
    __builtin_prefetch(bits[R - 1] + column / 8 + kBitsAheadBytes);
  }
  for (; column + kColumns <= task.in; column += kColumns) step(whole, column, 0, true);
  if (column < task.in) {
    const std::int64_t left = task.in - column;
    step([left](const std::uint8_t* p) { return Step::load_mask(p, left); }, column, 0, false);
  }

#pragma GCC unroll 4
  for (int c = 1; c < kChains; ++c) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) sum[0][r][t] = Step::add_sums(sum[0][r][t], sum[c][r][t]);
    }
  }
  store_totals<Step, R, T>(sum[0], task.sums + row, task.sums_stride);
}

/// Four or two rows at a time, as far as their sums fit the registers: they share the inputs, which
/// would otherwise be loaded for every one, and the adding up of lanes.
template <typename Step, int T>
inline void decode_all_rows(const gossamer::cpu::DecodeTask& task) {
  constexpr int R = 4 * T <= kMaxSums ? 4 : 2 * T <= kMaxSums ? 2 : 1;
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
