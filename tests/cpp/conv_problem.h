// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gossamer/conv.h"
#include "gossamer/openmp.h"
#include "testing.h"

// Convolutions with everything that they need, for tests.
namespace gossamer::test {

struct Case {
  std::string name;
  Conv2dShape shape;
  bool channels_last = false;
  bool bias = false;
  bool residual = false;
  bool relu = false;
  int threads = 1;
  double sparsity = 0.7;
};

/// X, W, bias, residual and room for Y, with guards around Y.
class Problem {
 public:
  static constexpr std::int64_t kGuard = 64;

  Problem(const Case& c, const Conv2dKernel& kernel, Random& random)
      : Problem(c, kernel.layout, random, kernel.dtype == DType::kInt8) {}

  Problem(const Case& c, Layout layout, Random& random, bool quantized = false)
      : case_(c),
        quantized_(quantized),
        weight_values_(random_sparse(random, DType::kFloat32, Pattern::unstructured(c.sparsity),
                                     c.shape.out_channels, taps())),
        weight_scale_(row_scales()),
        weight_(pack_filters(layout)),
        x_(random_matrix(random, DType::kFloat32, 1, x_size())),
        bias_(random_matrix(random, DType::kFloat32, 1, c.shape.out_channels)),
        residual_(random_matrix(random, DType::kFloat32, 1, y_size())),
        y_(random_matrix(random, DType::kFloat32, 1, y_size() + 2 * kGuard)),
        before_(y_) {
    quantize_x();
  }

  Matrix& x() { return x_; }
  const std::vector<float>& x_scale() const { return x_scale_; }
  /// After X has changed.
  void quantize_x() {
    if (!quantized_) return;
    x_scale_.resize(static_cast<std::size_t>(case_.shape.images));
    image_scales(args(), x_scale_.data());
  }
  const Matrix& weight_values() const { return weight_values_; }

  Conv2dArgs args() {
    const Conv2dShape& s = case_.shape;
    const auto strides = case_.channels_last ? ImageStrides::nhwc : ImageStrides::planar;
    Conv2dArgs args{.weight = weight_, .shape = s};
    args.x = x_.bytes.data();
    args.x_strides = strides(s.in_channels, s.height, s.width);
    args.y = y_.as<float>() + kGuard;
    args.y_strides = strides(s.out_channels, s.out_height(), s.out_width());
    if (case_.bias) args.bias = bias_.bytes.data();
    if (case_.residual) args.residual = residual_.bytes.data();
    if (case_.relu) args.activation = Activation::kRelu;
    if (case_.threads > 1) args.parallel = openmp_parallel_for(case_.threads);
    if (quantized_) {
      args.weight_scale = weight_scale_.data();
      args.x_scale = x_scale_.data();
    }
    return args;
  }

  std::vector<float> run(const Conv2dKernel& kernel) {
    kernel.run(args());
    return result();
  }

  std::vector<float> reference() {
    reference_conv2d(args());
    return result();
  }

  /// Σ|x·w| + |bias| + |residual| of every output: what the rounding errors are proportional to.
  std::vector<float> magnitudes() {
    Problem positive = *this;
    positive.case_.relu = false;
    for (Matrix* m :
         {&positive.weight_values_, &positive.x_, &positive.bias_, &positive.residual_}) {
      for (std::int64_t i = 0; i < m->size(); ++i) m->as<float>()[i] = std::fabs(m->as<float>()[i]);
    }
    positive.weight_ = positive.pack_filters(Layout::kBitmask);
    return positive.reference();
  }

  /// What rounding X to eight bits adds to every output at most: half a step for each input that a
  /// filter keeps there. Zeros where it is not rounded.
  std::vector<float> steps() const {
    Problem half = *this;
    half.case_.bias = half.case_.residual = half.case_.relu = false;
    for (std::int64_t i = 0; i < half.weight_values_.size(); ++i) {
      half.weight_values_.as<float>()[i] = std::fabs(half.weight_values_.as<float>()[i]);
    }
    half.weight_ = half.pack_filters(Layout::kBitmask);
    const std::int64_t image = case_.shape.images == 0 ? 1 : x_size() / case_.shape.images;
    for (std::int64_t i = 0; i < half.x_.size(); ++i) {
      half.x_.as<float>()[i] =
          quantized_ ? x_scale_[static_cast<std::size_t>(i / image)] / 2 : 0.0f;
    }
    return half.reference();
  }

  bool guards_untouched() const {
    const auto* now = y_.as<float>();
    const auto* then = before_.as<float>();
    const std::int64_t end = kGuard + y_size();
    for (std::int64_t i = 0; i < kGuard; ++i) {
      if (now[i] != then[i] || now[end + i] != then[end + i]) return false;
    }
    return true;
  }

 private:
  /// max |w| / 127 of every filter.
  std::vector<float> row_scales() const {
    std::vector<float> scales(static_cast<std::size_t>(case_.shape.out_channels));
    for (std::int64_t i = 0; i < weight_values_.size(); ++i) {
      float& scale = scales[static_cast<std::size_t>(i / taps())];
      scale = std::max(scale, std::fabs(weight_values_.as<float>()[i]) / 127.0f);
    }
    return scales;
  }

  /// The weight in eight bits.
  Matrix rounded_weight() const {
    Matrix rounded = zeros(DType::kInt8, case_.shape.out_channels, taps());
    for (std::int64_t i = 0; i < weight_values_.size(); ++i) {
      const float scale = weight_scale_[static_cast<std::size_t>(i / taps())];
      rounded.as<std::int8_t>()[i] = static_cast<std::int8_t>(
          scale > 0 ? std::lround(weight_values_.as<float>()[i] / scale) : 0);
    }
    return rounded;
  }

  PackedWeight pack_filters(Layout layout) const {
    const Matrix values = quantized_ ? rounded_weight() : weight_values_;
    PackOptions options;
    options.kernel_h = case_.shape.kernel_h;
    options.kernel_w = case_.shape.kernel_w;
    return pack(values.view(), nullptr, Pattern::unstructured(case_.sparsity), layout, options);
  }
  std::int64_t taps() const {
    return case_.shape.kernel_h * case_.shape.kernel_w * case_.shape.in_channels;
  }
  std::int64_t x_size() const {
    return case_.shape.images * case_.shape.in_channels * case_.shape.height * case_.shape.width;
  }
  std::int64_t y_size() const { return case_.shape.pixels() * case_.shape.out_channels; }
  std::vector<float> result() const {
    return {y_.as<float>() + kGuard, y_.as<float>() + kGuard + y_size()};
  }

  Case case_;
  bool quantized_;
  Matrix weight_values_;
  std::vector<float> weight_scale_;
  std::vector<float> x_scale_;
  PackedWeight weight_;
  Matrix x_;
  Matrix bias_;
  Matrix residual_;
  Matrix y_;
  Matrix before_;
};

inline Conv2dShape shape(std::int64_t images, std::int64_t in, std::int64_t out,
                         std::int64_t height, std::int64_t width, std::int64_t kernel,
                         std::int64_t stride, std::int64_t pad) {
  Conv2dShape s;
  s.images = images;
  s.in_channels = in;
  s.out_channels = out;
  s.height = height;
  s.width = width;
  s.kernel_h = s.kernel_w = kernel;
  s.stride_h = s.stride_w = stride;
  s.pad_top = s.pad_bottom = s.pad_left = s.pad_right = pad;
  return s;
}

/// What `actual` may differ from the float64 reference of its problem: n products and n sums of
/// relative error 2^-24 each, bias and residual included; the reference is rounded once. Eight
/// bits: the sums are exact, and rounding X, which is off by half a step, takes two of these
/// errors, the scales three.
inline void expect_near(const Case& c, Problem& problem, const std::vector<float>& actual) {
  const std::vector<float> expected = problem.reference();
  const std::vector<float> scale = problem.magnitudes();
  const std::vector<float> steps = problem.steps();
  const double roundings =
      static_cast<double>(c.shape.kernel_h * c.shape.kernel_w * c.shape.in_channels + 4);
  ASSERT_EQ(actual.size(), expected.size()) << c.name;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double step = static_cast<double>(steps[i]);
    const double bound = step + roundings * 0x1p-24 * (static_cast<double>(scale[i]) + step);
    ASSERT_NEAR(actual[i], expected[i], bound) << c.name << " at " << i;
  }
}

}  // namespace gossamer::test
