// SPDX-License-Identifier: BSD-3-Clause
// Every row of the convolutions' kernel table against plain loops in float64, and those loops
// against a convolution written out by hand. A new row is tested because it exists.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "conv_problem.h"
#include "gossamer/conv.h"
#include "gossamer/openmp.h"
#include "testing.h"

namespace gossamer::test {
namespace {

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
      {"bands", shape(2, 19, 12, 30, 17, 3, 1, 1)},
      {"bands_across_images", shape(9, 17, 6, 7, 7, 3, 1, 1)},
      {"bands_strided", shape(3, 15, 7, 29, 23, 3, 2, 1)},
      {"places_beyond_16_bits", shape(1, 1, 2, 202, 201, 200, 1, 0)},
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
    expect_near(c, problem, problem.run(GetParam()));
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
