// SPDX-License-Identifier: BSD-3-Clause
// What follows a product: bias, residual, activation, the dtype of Y. Included inside an anonymous
// namespace behind the instruction set's vector.inl; every kernel of the set shares it.
//
// The activations are x times a smooth step: the logistic function of x (SiLU), of twice the tanh
// approximation's argument (tanh u = 2σ(2u) − 1), or the normal distribution function. All need one
// exponential. Polynomials are minimax fits of the relative error: e^r on |r| <= 0.35 to 2.0e-9,
// ½·e^{z²}·erfc(z) in t = 1/(1 + z/2) on [0.2, 1] to 3.9e-8, below float32's unit roundoff.

/// e^x; 0 below −87.3 and infinity above 88.3, where 2^n would leave the normal range.
inline Vector exponential(Vector x) {
  const Vector lowest = repeat(-87.3f);
  const Vector highest = repeat(88.3f);
  const Vector inside = minimum(highest, maximum(lowest, x));
  const Vector n = nearest_integer(times(inside, repeat(1.44269504f)));
  // ln 2 in two parts, so that n·ln 2 loses nothing (Cody & Waite 1980).
  Vector r = multiply_add(n, repeat(-0.693359375f), inside);
  r = multiply_add(n, repeat(2.12194440e-4f), r);
  Vector p = repeat(1.383580193e-3f);
  p = multiply_add(p, r, repeat(8.37564503e-3f));
  p = multiply_add(p, r, repeat(4.166828873e-2f));
  p = multiply_add(p, r, repeat(0.1666641024f));
  p = multiply_add(p, r, repeat(0.4999999159f));
  p = multiply_add(p, r, repeat(1.000000039f));
  p = multiply_add(p, r, repeat(1.000000001f));
  const Vector e = times(p, power_of_two(n));
  return where_less(x, lowest, zero(), where_less(highest, x, repeat(__builtin_inff()), e));
}

/// x·σ(a).
inline Vector times_logistic(Vector x, Vector a) {
  const Vector e = exponential(times(a, repeat(-1.0f)));
  return divide(x, add(repeat(1.0f), e));
}

/// x·Φ(x).
inline Vector gelu(Vector x) {
  const Vector z = times(absolute(x), repeat(0.707106781f));
  const Vector t = divide(repeat(1.0f), multiply_add(z, repeat(0.5f), repeat(1.0f)));
  Vector p = repeat(-0.02891737066f);
  p = multiply_add(p, t, repeat(0.139242984f));
  p = multiply_add(p, t, repeat(-0.2372142876f));
  p = multiply_add(p, t, repeat(0.1316173612f));
  p = multiply_add(p, t, repeat(-0.008112572973f));
  p = multiply_add(p, t, repeat(0.09909637057f));
  p = multiply_add(p, t, repeat(0.1221342613f));
  p = multiply_add(p, t, repeat(0.1411051477f));
  p = multiply_add(p, t, repeat(0.1410480873f));
  const Vector tail = times(times(p, t), exponential(times(times(x, x), repeat(-0.5f))));
  const Vector upper = add(repeat(1.0f), times(tail, repeat(-1.0f)));
  return times(x, where_less(x, zero(), tail, upper));
}

inline Vector activate(Vector x, gossamer::Activation activation) {
  using gossamer::Activation;
  switch (activation) {
    case Activation::kRelu:
      return maximum(zero(), x);  // its second operand where that is NaN
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh: {
      const Vector square = times(x, x);
      const Vector slope = multiply_add(square, repeat(0.0713548163f), repeat(1.59576912f));
      return times_logistic(x, times(x, slope));
    }
    case Activation::kSilu:
      return times_logistic(x, x);
    case Activation::kRelu2: {
      const Vector positive = maximum(zero(), x);
      return times(positive, positive);
    }
    case Activation::kNone:
      break;
  }
  return x;
}

/// y[i] = act(sums[i] + bias[i] + residual[i]) for one token; bias and residual may be null.
template <typename Element>
inline void finish_token(const float* sums, const typename Element::Type* bias,
                         const typename Element::Type* residual, typename Element::Type* y,
                         std::int64_t rows, gossamer::Activation activation) {
  std::int64_t row = 0;
  for (; row + kLanes <= rows; row += kLanes) {
    Vector v = load(sums + row);
    if (bias != nullptr) v = add(v, Element::load(bias + row));
    if (residual != nullptr) v = add(v, Element::load(residual + row));
    Element::store(y + row, activate(v, activation));
  }
  if (row == rows) return;
  const std::int64_t left = rows - row;
  Vector v = Float32::load_first(sums + row, left);
  if (bias != nullptr) v = add(v, Element::load_first(bias + row, left));
  if (residual != nullptr) v = add(v, Element::load_first(residual + row, left));
  Element::store_first(y + row, activate(v, activation), left);
}

/// The first `count` of `v`, requantized.
inline void store_int8(std::int8_t* y, Vector v, float inverse, std::int64_t count) {
  const Vector scaled = times(v, repeat(inverse));
  const Vector inside = minimum(repeat(127.0f), maximum(repeat(-127.0f), scaled));
  store_bytes(y, where_less(inside, repeat(128.0f), inside, zero()), count);
}

/// What `finish` does where Y is int8.
inline void finish_int8(const gossamer::cpu::FinishTask& task) {
  const auto* bias = static_cast<const float*>(task.bias);
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    const float* sums = task.sums + t * task.sums_stride;
    const float* residual = task.residual == nullptr ? nullptr
                                                     : static_cast<const float*>(task.residual) +
                                                           t * task.residual_stride;
    std::int8_t* y = static_cast<std::int8_t*>(task.y) + t * task.y_stride;
    for (std::int64_t row = 0; row < task.rows; row += kLanes) {
      const std::int64_t left = task.rows - row < kLanes ? task.rows - row : kLanes;
      Vector v = Float32::load_first(sums + row, left);
      if (bias != nullptr) v = add(v, Float32::load_first(bias + row, left));
      if (residual != nullptr) v = add(v, Float32::load_first(residual + row, left));
      store_int8(y + row, activate(v, task.activation), task.y_inverse, left);
    }
  }
}

template <typename Element>
void finish(const gossamer::cpu::FinishTask& task) {
  using T = typename Element::Type;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (task.y_inverse > 0.0f) return finish_int8(task);
  }
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    const T* residual = task.residual == nullptr
                            ? nullptr
                            : static_cast<const T*>(task.residual) + t * task.residual_stride;
    finish_token<Element>(task.sums + t * task.sums_stride, static_cast<const T*>(task.bias),
                          residual, static_cast<T*>(task.y) + t * task.y_stride, task.rows,
                          task.activation);
  }
}

/// The task cut to rows [row, row + rows) and at most `tokens` tokens from `token` on, whose sums
/// are in `sums`.
template <typename Element>
inline gossamer::cpu::FinishTask part_of(const gossamer::cpu::FinishTask& task, const float* sums,
                                         std::int64_t sums_stride, std::int64_t row,
                                         std::int64_t rows, std::int64_t token,
                                         std::int64_t tokens) {
  using T = typename Element::Type;
  gossamer::cpu::FinishTask part = task;
  part.sums = sums;
  part.sums_stride = sums_stride;
  part.rows = rows;
  part.tokens = task.tokens - token < tokens ? task.tokens - token : tokens;
  if (task.bias != nullptr) part.bias = static_cast<const T*>(task.bias) + row;
  if (task.residual != nullptr) {
    part.residual = static_cast<const T*>(task.residual) + token * task.residual_stride + row;
  }
  const std::int64_t at = token * task.y_stride + row;
  part.y = static_cast<T*>(task.y) + at;
  if (task.y_inverse > 0.0f) part.y = static_cast<std::int8_t*>(task.y) + at;
  return part;
}
