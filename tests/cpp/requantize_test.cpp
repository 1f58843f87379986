// SPDX-License-Identifier: BSD-3-Clause
// Results as int8: every quantized row of the table writes what its float32 result says.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gossamer/linear.h"
#include "gossamer/openmp.h"
#include "gossamer/quantize.h"
#include "testing.h"

namespace gossamer::test {
namespace {

constexpr std::int64_t kIn = 70;
constexpr std::int64_t kOut = 83;
constexpr std::int64_t kStride = kOut + 5;
constexpr std::int8_t kUntouched = 101;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Half a step, and the roundings of a product with the reciprocal of the scale.
constexpr double kHalfAStep = 0.5 + 127 * 0x1p-22;

double steps_of(double value, float scale) {
  return std::isnan(value) ? 0.0 : std::clamp(value / scale, -127.0, 127.0);
}

std::vector<const LinearKernel*> quantized_rows() {
  std::vector<const LinearKernel*> rows;
  for (const LinearKernel& row : linear_kernels()) {
    if (row.weight_dtype == DType::kInt8 && host_machine().has(row.needs)) rows.push_back(&row);
  }
  return rows;
}

Pattern pattern_of(Layout layout) {
  switch (layout) {
    case Layout::kNm:
      return Pattern::nm(2, 4);
    case Layout::kBsr:
      return Pattern::block(1, 4, 0.5);
    case Layout::kFanIn:
      return Pattern::fan_in(0.5);
    default:
      return Pattern::unstructured(0.5);
  }
}

class Requantize : public testing::TestWithParam<const LinearKernel*> {};

TEST_P(Requantize, WritesWhatTheFloatResultSays) {
  const LinearKernel& kernel = *GetParam();
  Pattern pattern = pattern_of(kernel.layout);
  LinearDesc desc;
  desc.pattern = pattern;
  desc.weight_dtype = DType::kInt8;
  if (kernel.refuses != nullptr && !kernel.refuses(desc).empty()) {
    pattern = Pattern::block(16, 64, 0.5);  // whole tiles
  }
  for (const std::int64_t tokens : {1, 3, 8, 17, 130}) {
    for (const int threads : {1, 3}) {
      Random random(static_cast<std::uint64_t>(tokens));
      const Matrix values = random_sparse(random, DType::kInt8, pattern, kOut, kIn);
      const PackedWeight weight = pack_matrix(values, pattern, kernel.layout);
      const Matrix x = random_matrix(random, DType::kInt8, tokens, kIn);
      const Matrix bias = random_matrix(random, DType::kFloat32, 1, kOut);
      const Matrix residual = random_matrix(random, DType::kFloat32, tokens, kOut);
      std::vector<float> x_scale(static_cast<std::size_t>(tokens), 1e-3f);
      if (tokens > 1) x_scale[1] = kNan;
      std::vector<float> y(static_cast<std::size_t>(tokens * kStride));
      std::vector<std::int8_t> q(y.size(), kUntouched);

      LinearArgs args{.weight = weight};
      args.tokens = tokens;
      args.x = x.bytes.data();
      args.x_stride = kIn;
      args.x_scale = x_scale.data();
      args.bias = bias.bytes.data();
      args.residual = residual.bytes.data();
      args.residual_stride = kOut;
      args.activation = Activation::kSilu;
      args.y_stride = kStride;
      if (threads > 1) args.parallel = openmp_parallel_for(threads);
      args.y = y.data();
      kernel.run(args);
      args.y = q.data();
      args.y_scale = 0.02f;  // some results are beyond 127 steps
      kernel.run(args);
      bool saturates = false;
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t r = 0; r < kStride; ++r) {
          const auto at = static_cast<std::size_t>(t * kStride + r);
          if (r >= kOut) {
            ASSERT_EQ(q[at], kUntouched) << kernel.name;
            continue;
          }
          ASSERT_NEAR(q[at], steps_of(y[at], args.y_scale), kHalfAStep)
              << kernel.name << " token " << t << " row " << r;
          saturates = saturates || q[at] == 127;
        }
      }
      EXPECT_TRUE(saturates);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Requantize, testing::ValuesIn(quantized_rows()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(RequantizeReference, IsTheSame) {
  Random random(5);
  const Pattern pattern = Pattern::unstructured(0.5);
  const Matrix values = random_sparse(random, DType::kInt8, pattern, kOut, kIn);
  const PackedWeight weight = pack_matrix(values, pattern, Layout::kBitmask);
  const Matrix x = random_matrix(random, DType::kInt8, 4, kIn);
  const std::vector<float> x_scale(4, 1e-3f);
  std::vector<float> y(4 * kOut);
  std::vector<std::int8_t> q(4 * kOut);
  LinearArgs args{.weight = weight};
  args.tokens = 4;
  args.x = x.bytes.data();
  args.x_stride = kIn;
  args.x_scale = x_scale.data();
  args.y_stride = kOut;
  args.y = y.data();
  reference_linear(args);
  args.y = q.data();
  args.y_scale = 0.05f;
  reference_linear(args);
  for (std::size_t i = 0; i < y.size(); ++i) {
    ASSERT_NEAR(q[i], steps_of(y[i], args.y_scale), kHalfAStep);
  }
}

TEST(RequantizeResults, RoundToNearestAndSaturate) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> y{0.0f, 0.24f, 0.26f, -0.74f, 63.6f, 1e9f, -1e9f, kInfinity, -kInfinity, kNan};
  const std::vector<std::int8_t> wanted{0, 0, 1, -1, 127, 127, -127, 127, -127, 0};
  for (const std::size_t size : {y.size(), std::size_t{200000}}) {
    std::vector<float> all(size);
    for (std::size_t i = 0; i < size; ++i) all[i] = y[i % y.size()];
    std::vector<std::int8_t> q(size + 1, kUntouched);
    requantize(all.data(), static_cast<std::int64_t>(size), 0.5f, q.data(), openmp_parallel_for(3));
    for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(q[i], wanted[i % y.size()]) << i;
    EXPECT_EQ(q.back(), kUntouched);
  }
}

TEST(QuantizeTokensAtAFixedScale, RoundsAndCutsOff) {
  constexpr float kScale = 0.25f;
  Random random(3);
  std::normal_distribution<float> normal;
  for (const std::int64_t in : {1, 7, 16, 33, 1000}) {
    constexpr std::int64_t kTokens = 40;
    std::vector<float> x(static_cast<std::size_t>(kTokens * in));
    for (float& v : x) v = 20.0f * normal(random);
    x[0] = 1e30f;
    x[static_cast<std::size_t>(2 * in)] = kNan;
    x[static_cast<std::size_t>(4 * in - 1)] = -std::numeric_limits<float>::infinity();
    std::vector<std::int8_t> q(x.size(), kUntouched);
    std::vector<float> scale(kTokens);
    QuantizeArgs args;
    args.x = x.data();
    args.x_stride = in;
    args.tokens = kTokens;
    args.in = in;
    args.q = q.data();
    args.scale = scale.data();
    args.fixed_scale = kScale;
    args.parallel = openmp_parallel_for(3);
    quantize_tokens(args);
    EXPECT_EQ(q[0], 127);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const bool is_finite = t != 2 && t != 3;
      ASSERT_EQ(std::isnan(scale[static_cast<std::size_t>(t)]), !is_finite);
      if (is_finite) {
        ASSERT_EQ(scale[static_cast<std::size_t>(t)], kScale);
      }
      for (std::int64_t k = 0; k < in; ++k) {
        const auto at = static_cast<std::size_t>(t * in + k);
        ASSERT_NEAR(q[at], is_finite ? steps_of(x[at], kScale) : 0.0, kHalfAStep);
      }
    }
  }
}

TEST(RequantizeRefusals, NameTheScale) {
  Random random(6);
  const Pattern pattern = Pattern::unstructured(0.5);
  const PackedWeight weight =
      pack_matrix(random_sparse(random, DType::kInt8, pattern, 4, 8), pattern, Layout::kBitmask);
  const Matrix x = random_matrix(random, DType::kInt8, 1, 8);
  const float x_scale = 1.0f;
  std::vector<float> y(4);
  LinearArgs args{.weight = weight};
  args.tokens = 1;
  args.x = x.bytes.data();
  args.x_stride = 8;
  args.y = y.data();
  args.y_stride = 4;
  args.y_scale = 0.5f;
  const auto message = [&] { return message_of([&] { run_linear(args); }); };
  EXPECT_NE(message().find("y_scale is 0.5 without x_scale"), std::string::npos) << message();
  args.x_scale = &x_scale;
  args.y_scale = kNan;
  EXPECT_NE(message().find("y_scale is nan"), std::string::npos) << message();
  for (const float scale : {1e-39f, -0.5f, std::numeric_limits<float>::infinity()}) {
    args.y_scale = scale;
    EXPECT_NE(message().find("above 1.2e-38"), std::string::npos) << scale;
    std::int8_t q = kUntouched;
    const auto of_results = [&] { requantize(y.data(), 1, scale, &q, args.parallel); };
    EXPECT_NE(message_of(of_results).find("requantize: scale is"), std::string::npos) << scale;
    QuantizeArgs tokens;
    tokens.fixed_scale = scale;
    const auto of_inputs = [&] { quantize_tokens(tokens); };
    EXPECT_NE(message_of(of_inputs).find("fixed_scale is"), std::string::npos) << scale;
  }
}

}  // namespace
}  // namespace gossamer::test
