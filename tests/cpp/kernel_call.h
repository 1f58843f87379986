// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gossamer/linear.h"
#include "gossamer/openmp.h"
#include "testing.h"

// One call of a row of the kernel table, against plain loops in float64 and a bound that follows
// from the number of roundings.
namespace gossamer::test {

/// One call of one kernel, with room around Y to notice a write outside.
struct Case {
  Pattern pattern;
  std::int64_t batch = 1;
  std::int64_t out = 1;
  std::int64_t in = 1;
  std::int64_t tokens = 1;
  bool bias = false;
  bool residual = false;
  Activation activation = Activation::kNone;
  std::int64_t padding = 0;  ///< elements between rows of X, Y and residual
  int threads = 1;

  std::string to_string() const {
    return pattern.to_string() + " batch " + std::to_string(batch) + " out " + std::to_string(out) +
           " in " + std::to_string(in) + " tokens " + std::to_string(tokens) +
           (bias ? " bias" : "") + (residual ? " residual" : "") + " activation " +
           std::to_string(static_cast<int>(activation)) + " padding " + std::to_string(padding) +
           " threads " + std::to_string(threads);
  }
};

/// The dtype of Y, bias and residual.
inline DType result_dtype(const LinearKernel& kernel) {
  return kernel.activation_dtype == DType::kInt8 ? DType::kFloat32 : kernel.activation_dtype;
}

/// The half-width of rounding to nearest, relative.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kFloat16:
      return 0x1p-11;
    default:
      return 0x1p-8;
  }
}

/// Arithmetic is float64 for float64 and float32 for everything else.
inline double compute_roundoff(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24; }

/// The activations by their definitions.
inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return x < 0.0 ? 0.0 : x;
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kRelu2:
      return x < 0.0 ? 0.0 : x * x;
    case Activation::kNone:
      break;
  }
  return x;
}

/// How far act(s) may be from act(sum) in an arithmetic of roundoff u, where |s - sum| <= error.
/// No activation is steeper than 1.13. An activation is x times a step between 0 and 1. With
/// e = exp(a) of relative error 4u + 4u|a| (four roundings in a, three in the reduced exponential,
/// one for its polynomial), the step 1/(1 + e) is off by at most 0.25·4u + max |a|σ(1−σ)·4u < 2u,
/// and by 2u more for the sum and the quotient; the normal distribution function by half of its
/// tail's relative error, at most 8u, and by u for the difference from 1. So 5u|x| bounds both,
/// with the product; the factor 8 has room for second-order terms. Squared ReLU has no such slope:
/// it is (x + error)², rounded once.
inline double activation_error(Activation activation, double sum, double error, double u) {
  if (activation == Activation::kNone || activation == Activation::kRelu) return error;
  if (activation == Activation::kRelu2) {
    const double most = std::fabs(sum) + error;
    return error * (std::fabs(sum) + most) + u * most * most;
  }
  return 1.13 * error + 8.0 * u * (std::fabs(sum) + error);
}

inline constexpr std::array kActivations{Activation::kNone, Activation::kRelu,
                                         Activation::kGelu, Activation::kGeluTanh,
                                         Activation::kSilu, Activation::kRelu2};
static_assert(kActivations.size() == kActivationCount);

/// A random weight in the layout of a kernel, for any number of calls: making one takes longer than
/// most calls.
class Weight {
 public:
  Weight(const LinearKernel& kernel, const Case& c, Random& random)
      : pattern(c.pattern),
        batch(c.batch),
        out(c.out),
        in(c.in),
        values(random_sparse(random, kernel.weight_dtype, c.pattern, c.out, c.in, c.batch)),
        packed(pack_matrix(values, c.pattern, kernel.layout)),
        mask(unpack_mask(packed)),
        kept(static_cast<std::size_t>(c.batch * c.out)) {
    for (std::int64_t at = 0; at < values.size(); ++at) {
      if (mask.bytes[static_cast<std::size_t>(at)] == std::byte{0}) continue;
      kept[static_cast<std::size_t>(at / c.in)].emplace_back(at % c.in, element(values, at));
    }
  }

  bool fits(const Case& c) const {
    return pattern == c.pattern && batch == c.batch && out == c.out && in == c.in;
  }

  const Pattern pattern;
  const std::int64_t batch;
  const std::int64_t out;
  const std::int64_t in;
  const Matrix values;
  const PackedWeight packed;
  const Matrix mask;
  std::vector<std::vector<std::pair<std::int64_t, double>>> kept;  ///< of each row: column, value
};

class Call {
 public:
  /// `weight` must fit `c` and outlive the call.
  Call(const LinearKernel& kernel, const Case& c, const Weight& weight, Random& random)
      : kernel_(kernel),
        case_(c),
        weight_(weight),
        dtype_(result_dtype(kernel)),
        quantized_(kernel.activation_dtype == DType::kInt8),
        x_(random_matrix(random, kernel.activation_dtype, c.tokens, c.in + c.padding, c.batch)),
        x_scale_(random_matrix(random, DType::kFloat32, c.batch, c.tokens)),
        weight_scale_(random_matrix(random, DType::kFloat32, c.batch, c.out)),
        bias_(random_matrix(random, dtype_, c.batch, c.out)),
        residual_(random_matrix(random, dtype_, c.tokens, c.out + c.padding, c.batch)),
        y_(random_matrix(random, dtype_, c.tokens + 2, c.out + c.padding, c.batch)),
        before_(y_) {}

  Matrix& x() { return x_; }
  const Matrix& mask() const { return weight_.mask; }
  std::int64_t y_index(std::int64_t b, std::int64_t t, std::int64_t r) const {
    return (b * (case_.tokens + 2) + t + 1) * (case_.out + case_.padding) + r;
  }
  std::int64_t x_index(std::int64_t b, std::int64_t t, std::int64_t k) const {
    return (b * case_.tokens + t) * (case_.in + case_.padding) + k;
  }

  /// Calls the kernel; the first and last row of Y and the padding must stay untouched.
  void call(bool residual_is_y = false) {
    const std::int64_t bytes = dtype_bytes(dtype_);
    LinearArgs args{.weight = weight_.packed};
    args.tokens = case_.tokens;
    args.x = x_.bytes.data();
    args.x_stride = case_.in + case_.padding;
    args.x_batch_stride = case_.tokens * args.x_stride;
    args.y_stride = case_.out + case_.padding;
    args.y_batch_stride = (case_.tokens + 2) * args.y_stride;
    args.y = y_.bytes.data() + args.y_stride * bytes;
    if (quantized_) {
      args.x_scale = x_scale_.as<float>();
      if (case_.out % 2 == 1) args.weight_scale = weight_scale_.as<float>();
    }
    if (case_.bias) args.bias = bias_.bytes.data();
    if (case_.residual) {
      args.residual = residual_.bytes.data();
      args.residual_stride = args.y_stride;
      args.residual_batch_stride = case_.tokens * args.y_stride;
    }
    if (residual_is_y) {
      args.residual = args.y;
      args.residual_stride = args.y_stride;
      args.residual_batch_stride = args.y_batch_stride;
      residual_is_y_ = true;
    }
    args.activation = case_.activation;
    if (case_.threads > 1) args.parallel = openmp_parallel_for(case_.threads);
    kernel_.run(args);
  }

  double actual(std::int64_t b, std::int64_t t, std::int64_t r) const {
    return element(y_, y_index(b, t, r));
  }

  /// The exact result before activation and rounding, and the sum of absolute products that bounds
  /// its error.
  std::array<double, 2> expected(std::int64_t b, std::int64_t t, std::int64_t r) const {
    double sum = 0.0;
    double size = 0.0;
    const double* x = x_as_double_.data() + x_index(b, t, 0);
    for (const auto& [k, value] : weight_.kept[static_cast<std::size_t>(b * case_.out + r)]) {
      const double product = value * x[k];
      sum += product;
      size += std::fabs(product);
    }
    if (quantized_) {
      double scale = element(x_scale_, b * case_.tokens + t);
      if (case_.out % 2 == 1) scale *= element(weight_scale_, b * case_.out + r);
      sum *= scale;
      size *= std::fabs(scale);
    }
    if (case_.bias) add(element(bias_, b * case_.out + r), sum, size);
    if (case_.residual) {
      const std::int64_t at = (b * case_.tokens + t) * (case_.out + case_.padding) + r;
      add(element(residual_, at), sum, size);
    }
    if (residual_is_y_) add(element(before_, y_index(b, t, r)), sum, size);
    return {sum, size};
  }

  /// Compares everything. The bound is that of any order of summation (Higham 2002, §4.2): every
  /// addition and product rounds once, so |error| <= n·u·Σ|x·w| to first order with n roundings in
  /// a chain; then one rounding to the dtype of Y.
  void check() {
    x_as_double_.resize(static_cast<std::size_t>(x_.size()));
    for (std::int64_t i = 0; i < x_.size(); ++i) {
      x_as_double_[static_cast<std::size_t>(i)] = element(x_, i);
    }
    // Sums of int8 products are exact: they are rounded to float32, then come scales and epilogue.
    const double roundings = quantized_ ? 5.0 : static_cast<double>(case_.in) + 4.0;
    for (std::int64_t b = 0; b < case_.batch; ++b) {
      for (std::int64_t t = 0; t < case_.tokens; ++t) {
        for (std::int64_t r = 0; r < case_.out; ++r) {
          const auto [sum, size] = expected(b, t, r);
          // 2: the second-order terms; and twice the spacing where float16 is subnormal.
          const double u = compute_roundoff(dtype_);
          const double result = activated(case_.activation, sum);
          const double error =
              activation_error(case_.activation, sum, 2.0 * roundings * u * size, u);
          const double bound =
              error + unit_roundoff(dtype_) * (std::fabs(result) + error) + 0x1p-24;
          ASSERT_LE(std::fabs(actual(b, t, r) - result), bound)
              << kernel_.name << ": " << case_.to_string() << " at batch " << b << " token " << t
              << " row " << r;
        }
      }
    }
    check_untouched();
  }

 private:
  static void add(double value, double& sum, double& size) {
    sum += value;
    size += std::fabs(value);
  }

  void check_untouched() const {
    const auto bytes = static_cast<std::size_t>(dtype_bytes(dtype_));
    const std::int64_t stride = case_.out + case_.padding;
    for (std::int64_t i = 0; i < y_.size(); ++i) {
      const std::int64_t row = i / stride % (case_.tokens + 2);
      if (row >= 1 && row <= case_.tokens && i % stride < case_.out) continue;
      ASSERT_EQ(std::memcmp(y_.bytes.data() + static_cast<std::size_t>(i) * bytes,
                            before_.bytes.data() + static_cast<std::size_t>(i) * bytes, bytes),
                0)
          << kernel_.name << ": wrote outside Y in " << case_.to_string();
    }
  }

  const LinearKernel& kernel_;
  Case case_;
  const Weight& weight_;
  DType dtype_;     ///< of Y, bias and residual
  bool quantized_;  ///< X is int8
  Matrix x_;
  Matrix x_scale_;
  Matrix weight_scale_;
  Matrix bias_;
  Matrix residual_;
  Matrix y_;
  Matrix before_;
  std::vector<double> x_as_double_;
  bool residual_is_y_ = false;
};

}  // namespace gossamer::test
