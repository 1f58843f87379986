// SPDX-License-Identifier: BSD-3-Clause
// Every row of the convolutions' kernel table against plain loops in float64, and those loops
// against a convolution written out by hand. A new row is tested because it exists.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gossamer/conv.h"
#include "gossamer/openmp.h"
#include "testing.h"

namespace gossamer::test {
namespace {

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

Conv2dShape shape(std::int64_t images, std::int64_t in, std::int64_t out, std::int64_t height,
                  std::int64_t width, std::int64_t kernel, std::int64_t stride, std::int64_t pad) {
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

std::vector<Case> cases() {
  std::vector<Case> all{
      {"pointwise", shape(2, 40, 24, 9, 7, 1, 1, 0)},
      {"pointwise_strided", shape(2, 40, 24, 9, 8, 1, 2, 0)},
      {"three_by_three", shape(3, 24, 20, 14, 14, 3, 1, 1)},
      {"wide_rows", shape(1, 5, 9, 4, 150, 3, 1, 1)},
      {"strided", shape(2, 16, 8, 15, 33, 3, 2, 1)},
      {"stem", shape(1, 3, 16, 37, 41, 7, 2, 3)},
      {"stride_of_three", shape(1, 8, 8, 20, 20, 5, 3, 2)},
      {"one_pixel", shape(1, 70, 3, 3, 3, 3, 1, 0)},
      {"one_channel", shape(4, 1, 1, 5, 5, 3, 1, 1)},
      {"narrow_columns", shape(2, 6, 5, 40, 1, 3, 1, 1)},
      {"many_channels", shape(1, 300, 17, 4, 4, 3, 1, 1)},
      {"no_images", shape(0, 4, 4, 8, 8, 3, 1, 1)},
      {"padding_wider_than_input", shape(1, 4, 4, 2, 2, 3, 1, 4)},
  };
  Case uneven{"dilated_uneven", shape(2, 12, 10, 16, 19, 3, 1, 0)};
  uneven.shape.kernel_w = 4;
  uneven.shape.dilation_h = 2;
  uneven.shape.dilation_w = 3;
  uneven.shape.stride_w = 2;
  uneven.shape.pad_left = 2;
  uneven.shape.pad_right = 5;
  uneven.shape.pad_bottom = 1;
  all.push_back(uneven);
  Case empty{"nothing_kept", shape(1, 8, 4, 6, 6, 3, 1, 1)};
  empty.sparsity = 1.0;
  all.push_back(empty);
  Case full{"everything_kept", shape(1, 8, 4, 6, 6, 3, 1, 1)};
  full.sparsity = 0.0;
  all.push_back(full);
  const std::size_t plain = all.size();
  for (std::size_t i = 0; i < plain; ++i) {
    Case c = all[i];
    c.name += "_nhwc";
    c.channels_last = true;
    all.push_back(c);
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].bias = i % 2 == 0;
    all[i].residual = i % 3 == 0;
    all[i].relu = i % 4 < 2;
    all[i].threads = i % 5 == 0 ? 2 : 1;
  }
  return all;
}

class EveryConvolution : public ::testing::TestWithParam<Conv2dKernel> {
 protected:
  void SetUp() override {
    if (!host_machine().has(GetParam().needs)) {
      GTEST_SKIP() << GetParam().name << " does not run on " << host_machine().name;
    }
  }
};

TEST_P(EveryConvolution, AgreesWithTheReference) {
  Random random(7);
  for (const Case& c : cases()) {
    Problem problem(c, GetParam(), random);
    const std::vector<float> expected = problem.reference();
    const std::vector<float> scale = problem.magnitudes();
    const std::vector<float> steps = problem.steps();
    const std::vector<float> actual = problem.run(GetParam());
    // n products and n sums of relative error 2^-24 each, bias and residual included; the
    // reference is rounded once. Eight bits: the sums are exact, and rounding X, which is off by
    // half a step, takes two of these errors, the scales three.
    const double roundings =
        static_cast<double>(c.shape.kernel_h * c.shape.kernel_w * c.shape.in_channels + 4);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      const double step = static_cast<double>(steps[i]);
      const double bound = step + roundings * 0x1p-24 * (static_cast<double>(scale[i]) + step);
      ASSERT_NEAR(actual[i], expected[i], bound) << c.name << " at " << i;
    }
    EXPECT_TRUE(problem.guards_untouched()) << c.name;
  }
}

TEST_P(EveryConvolution, ThreadsDoNotChangeTheResult) {
  Random random(8);
  Case c{"threads", shape(3, 32, 48, 13, 13, 3, 1, 1)};
  Problem one(c, GetParam(), random);
  const std::vector<float> expected = one.run(GetParam());
  Conv2dArgs args = one.args();
  for (const int threads : {2, 3, 7}) {
    args.parallel = openmp_parallel_for(threads);
    std::fill_n(static_cast<float*>(args.y), expected.size(), 0.0f);
    GetParam().run(args);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(static_cast<const float*>(args.y)[i], expected[i]) << threads << " at " << i;
    }
  }
}

TEST_P(EveryConvolution, PrunedWeightsAddNothingToNanAndInfinity) {
  Random random(9);
  for (const bool channels_last : {false, true}) {
    Case c{"nan", shape(1, 6, 4, 5, 5, 1, 1, 0)};
    c.channels_last = channels_last;
    c.sparsity = 1.0;
    c.bias = true;
    Problem problem(c, GetParam(), random);
    for (std::int64_t i = 0; i < problem.x().size(); ++i) {
      problem.x().as<float>()[i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                              : std::numeric_limits<float>::infinity();
    }
    if (GetParam().dtype == DType::kInt8) continue;  // see AnImageThatIsNotFiniteIsNaN
    for (const float y : problem.run(GetParam())) EXPECT_TRUE(std::isfinite(y));
  }
}

TEST_P(EveryConvolution, WholeNumbersAreExactInEightBits) {
  if (GetParam().dtype != DType::kInt8) GTEST_SKIP() << "not a quantized row";
  Random random(11);
  for (const bool channels_last : {false, true}) {
    Case c{"exact", shape(3, 13, 9, 11, 10, 3, 1, 1)};
    c.channels_last = channels_last;
    Problem problem(c, GetParam(), random);
    // Every image holds 127, so that its scale is 1 and nothing of X is rounded.
    const std::int64_t image = problem.x().size() / 3;
    for (std::int64_t i = 0; i < problem.x().size(); ++i) {
      problem.x().as<float>()[i] =
          i % image == 5 ? 127.0f : static_cast<float>(static_cast<int>(i * 37 % 255) - 127);
    }
    problem.quantize_x();
    for (const float scale : problem.x_scale()) ASSERT_EQ(scale, 1.0f);
    const std::vector<float> expected = problem.reference();
    const std::vector<float> scale = problem.magnitudes();
    const std::vector<float> actual = problem.run(GetParam());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      // The sum is exact: it is rounded once, as the reference is, and multiplied by a scale.
      ASSERT_NEAR(actual[i], expected[i], 4 * 0x1p-24 * static_cast<double>(scale[i])) << i;
    }
  }
}

TEST_P(EveryConvolution, AnImageThatIsNotFiniteIsNaN) {
  if (GetParam().dtype != DType::kInt8) GTEST_SKIP() << "not a quantized row";
  Random random(12);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Case c{"nan", shape(3, 6, 4, 5, 5, 3, 1, 1)};
    Problem problem(c, GetParam(), random);
    const std::vector<float> before = problem.run(GetParam());
    problem.x().as<float>()[6 * 25 + 7] = bad;  // of the second image
    problem.quantize_x();
    const std::vector<float> after = problem.run(GetParam());
    for (std::size_t i = 0; i < after.size(); ++i) {
      if (i / 100 == 1) {
        ASSERT_TRUE(std::isnan(after[i])) << i;
      } else {
        ASSERT_EQ(after[i], before[i]) << i;
      }
    }
  }
}

TEST(ImageScales, AreThoseOfEachImageWhateverItsMemory) {
  Random random(13);
  const Conv2dShape s = shape(3, 5, 2, 6, 7, 3, 1, 1);
  const std::int64_t image = 5 * 6 * 7;
  Matrix x = random_matrix(random, DType::kFloat32, 3, image);
  for (std::int64_t i = 0; i < image; ++i) x.as<float>()[image + i] = 0.0f;
  const PackedWeight weight = pack_matrix(matrix_f32(2, 45, std::vector<float>(90, 1.0f)),
                                          Pattern::unstructured(0.0), Layout::kBitmask);
  for (const bool channels_last : {false, true}) {
    Conv2dArgs args{.weight = weight, .shape = s};
    args.x = x.bytes.data();
    args.x_strides = channels_last ? ImageStrides::nhwc(5, 6, 7) : ImageStrides::planar(5, 6, 7);
    args.parallel = openmp_parallel_for(2);
    float scales[3] = {};
    image_scales(args, scales);
    for (std::int64_t i = 0; i < 3; ++i) {
      float largest = 0.0f;
      for (std::int64_t k = 0; k < image; ++k) {
        largest = std::max(largest, std::fabs(x.as<float>()[i * image + k]));
      }
      EXPECT_EQ(scales[i], largest / 127.0f) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Table, EveryConvolution, ::testing::ValuesIn(conv2d_kernels()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ReferenceConv2d, IsACrossCorrelationOverTheTapsInRowOrder) {
  // One image 1×2×3, one filter 1×2×2 over channels {0, 1}: taps (0,0), (0,1), (1,0), (1,1).
  Conv2dShape s = shape(1, 2, 1, 2, 3, 2, 1, 0);
  const Matrix weight = matrix_f32(1, 8, {1, 0, 0, 2, 3, 0, 0, 4});
  const PackedWeight packed = pack_matrix(weight, Pattern::unstructured(0.5), Layout::kBitmask);
  const float x[] = {1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 60};
  float y[2] = {};
  Conv2dArgs args{.weight = packed, .shape = s};
  args.x = x;
  args.x_strides = ImageStrides::planar(2, 2, 3);
  args.y = y;
  args.y_strides = ImageStrides::planar(1, 1, 2);
  reference_conv2d(args);
  EXPECT_EQ(y[0], 1 * 1 + 2 * 20 + 3 * 4 + 4 * 50);
  EXPECT_EQ(y[1], 1 * 2 + 2 * 30 + 3 * 5 + 4 * 60);
}

TEST(CheckConv2d, NamesWhatContradicts) {
  Random random(10);
  Case c{"checked", shape(1, 4, 4, 8, 8, 3, 1, 1)};
  Problem problem(c, Layout::kBitmask, random);
  const auto message = [&](auto change) {
    Conv2dArgs args = problem.args();
    change(args);
    return message_of([&] { check_conv2d(args); });
  };
  EXPECT_EQ(message([](Conv2dArgs&) {}), "");
  const auto has = [&](auto change, const std::string& words) {
    EXPECT_NE(message(change).find(words), std::string::npos) << message(change);
  };
  has([](Conv2dArgs& a) { a.shape.stride_h = 0; }, "stride 0×1");
  has([](Conv2dArgs& a) { a.shape.pad_left = -1; }, "none is negative");
  has([](Conv2dArgs& a) { a.shape.in_channels = 5; }, "needs 4 × 45");
  has(
      [](Conv2dArgs& a) {
        a.shape.height = a.shape.width = a.shape.pad_top = a.shape.pad_bottom = 0;
      },
      "larger than the padded input");
  has([](Conv2dArgs& a) { a.x_strides = {512, 64, 16, 2}; }, "make it contiguous");
  has([](Conv2dArgs& a) { a.y_strides.row = 9; }, "without gaps");
  const float scale[4] = {};
  has([&](Conv2dArgs& a) { a.weight_scale = scale; }, "they belong to int8 weights");
  Problem quantized(c, Layout::kBitmask, random, true);
  Conv2dArgs args = quantized.args();
  args.x_scale = nullptr;
  const std::string missing = message_of([&] { check_conv2d(args); });
  EXPECT_NE(missing.find("x_scale is null"), std::string::npos) << missing;
}

}  // namespace
}  // namespace gossamer::test
