// SPDX-License-Identifier: BSD-3-Clause
// Sums of products of int8, [rows][tokens], to Y, [tokens][rows]. Included inside an anonymous
// namespace behind epilogue.inl and quarters.inl, which turns 16 rows of 4 tokens.
//
// Only four rows of Y are written in turns: sixteen, as far apart as Y is wide, take twice as long,
// whatever they hold (128×3072 on a 2-processor Emerald Rapids, 2026-11-30: 75 µs and 38, all of
// this 77; by way of transposes of 16×16 and a buffer in L1 138).

/// What 16 rows add to all tokens' sums.
struct QuadRows {
  __m512i correction;
  Vector weight_scale;
  Vector bias;
};

inline QuadRows quad_rows(const gossamer::cpu::KcsrStoreTask& task, std::int64_t row,
                          std::int64_t count) {
  const __mmask16 live = first_lanes(count);
  const auto* bias = static_cast<const float*>(task.out.bias);
  return {task.corrections == nullptr ? _mm512_setzero_si512()
                                      : _mm512_maskz_loadu_epi32(live, task.corrections + row),
          task.weight_scale == nullptr ? repeat(1.0f)
                                       : _mm512_maskz_loadu_ps(live, task.weight_scale + row),
          bias == nullptr ? zero() : _mm512_maskz_loadu_ps(live, bias + row)};
}

/// Four tokens of a store, at most, and where their results go.
struct QuadTokens {
  const gossamer::cpu::KcsrStoreTask& task;
  std::int64_t first;
  std::int64_t count;
  Vector x_scale[4];

  QuadTokens(const gossamer::cpu::KcsrStoreTask& store_task, std::int64_t token)
      : task(store_task), first(token), count(store_task.out.tokens - token) {
    if (count > 4) count = 4;
    for (int k = 0; k < 4; ++k) x_scale[k] = repeat(task.x_scale[k < count ? first + k : first]);
  }

  /// The sums of 16 rows of token k, scaled, and what happens to the first `rows` of them. The
  /// operations and their order are those of dequantize and finish, so that every kernel gives the
  /// same bits.
  Vector scaled(Vector sums, int k, const QuadRows& constants) const {
    const __m512i exact = _mm512_sub_epi32(_mm512_castps_si512(sums), constants.correction);
    Vector v = times(_mm512_cvtepi32_ps(exact), x_scale[k]);
    if (task.weight_scale != nullptr) v = times(v, constants.weight_scale);
    if (task.out.bias != nullptr) v = add(v, constants.bias);
    return v;
  }

  void finish(Vector v, int k, std::int64_t row, std::int64_t rows) const {
    const gossamer::cpu::FinishTask& out = task.out;
    if (out.residual != nullptr) {
      v = add(v, Float32::load_first(static_cast<const float*>(out.residual) +
                                         (first + k) * out.residual_stride + row,
                                     rows));
    }
    v = activate(v, out.activation);
    const std::int64_t at = (first + k) * out.y_stride + row;
    if (out.y_inverse > 0.0f) {
      store_int8(static_cast<std::int8_t*>(out.y) + at, v, out.y_inverse, rows);
    } else if (rows == kLanes) {
      store(static_cast<float*>(out.y) + at, v);
    } else {
      Float32::store_first(static_cast<float*>(out.y) + at, v, rows);
    }
  }
};

/// `count` rows, 16 or what is left.
inline void store_quad_rows(const QuadTokens& tokens, std::int64_t row, std::int64_t count) {
  const gossamer::cpu::KcsrStoreTask& task = tokens.task;
  const QuadRows constants = quad_rows(task, row, count);
  const float* sums = task.sums + row * task.lanes + tokens.first;
  Vector v[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) v[j] = load_quarters(sums, task.lanes, j, count);
  turn_quarters(v);
  for (int k = 0; k < tokens.count; ++k) {
    tokens.finish(tokens.scaled(v[k], k, constants), k, row, count);
  }
}

/// 16 rows of four tokens, whose results are stored as they are. Asks for the sums of the next
/// tokens, `next`, of a quarter of the rows.
inline void store_plain_rows(const QuadTokens& tokens, std::int64_t row, const float* next) {
  const gossamer::cpu::KcsrStoreTask& task = tokens.task;
  const QuadRows constants = quad_rows(task, row, kLanes);
  const float* sums = task.sums + row * task.lanes + tokens.first;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) __builtin_prefetch(next + j * task.lanes);
  Vector v[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) v[j] = load_quarters(sums, task.lanes, j, kLanes);
  turn_quarters(v);
  float* y = static_cast<float*>(task.out.y) + tokens.first * task.out.y_stride + row;
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    store(y + k * task.out.y_stride, tokens.scaled(v[k], k, constants));
  }
}

/// A chunk of rows for 16 tokens: a line of sums holds 16, and is in L1 for the second to fourth.
void store_quads(const gossamer::cpu::KcsrStoreTask& task) {
  constexpr std::int64_t kRows = 64;
  const gossamer::cpu::FinishTask& out = task.out;
  const bool as_they_are = out.residual == nullptr && out.y_inverse <= 0.0f &&
                           out.activation == gossamer::Activation::kNone;
  for (std::int64_t begin = 0; begin < out.rows; begin += kRows) {
    const std::int64_t end = out.rows - begin < kRows ? out.rows : begin + kRows;
    for (std::int64_t token = 0; token < out.tokens; token += 4) {
      const QuadTokens tokens(task, token);
      const bool plain = as_they_are && tokens.count == 4;
      // Each fourth asks for the lines of four rows in sixteen, for the tokens behind these 16.
      const std::int64_t line = token / 16 * 16 + 16;
      const float* next = line < out.tokens ? task.sums + line : task.sums + kRows * task.lanes;
      next += token % 16 * task.lanes;
      std::int64_t row = begin;
      for (; row + kLanes <= end; row += kLanes) {
        if (plain) {
          store_plain_rows(tokens, row, next + row * task.lanes);
        } else {
          store_quad_rows(tokens, row, kLanes);
        }
      }
      if (row < end) store_quad_rows(tokens, row, end - row);
    }
  }
}
