// SPDX-License-Identifier: BSD-3-Clause
// Tokens to int8 against what the header promises.
#include "gossamer/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gossamer/openmp.h"
#include "testing.h"

namespace gossamer::test {
namespace {

struct Quantized {
  std::vector<std::int8_t> q;
  std::vector<float> scale;
};

Quantized quantize(const std::vector<float>& x, std::int64_t tokens, std::int64_t in,
                   std::int64_t stride, int threads = 1) {
  Quantized result;
  result.q.assign(static_cast<std::size_t>(tokens * in + 1), 99);
  result.scale.assign(static_cast<std::size_t>(tokens + 1), -7.0f);
  QuantizeArgs args;
  args.x = x.data();
  args.x_stride = stride;
  args.tokens = tokens;
  args.in = in;
  args.q = result.q.data();
  args.scale = result.scale.data();
  if (threads > 1) args.parallel = openmp_parallel_for(threads);
  quantize_tokens(args);
  EXPECT_EQ(result.q.back(), 99);
  EXPECT_EQ(result.scale.back(), -7.0f);
  return result;
}

TEST(QuantizeTokens, IsWithinHalfAStep) {
  Random random(1);
  std::normal_distribution<float> normal;
  for (const std::int64_t in : {1, 2, 7, 8, 15, 16, 31, 33, 64, 100, 1031}) {
    for (const std::int64_t tokens : {0, 1, 3, 65}) {
      const std::int64_t stride = in + 3;
      std::vector<float> x(static_cast<std::size_t>(std::max(tokens * stride, std::int64_t{1})));
      for (float& v : x)
        v = normal(random) * std::ldexp(1.0f, static_cast<int>(random() % 40) - 20);
      const Quantized result = quantize(x, tokens, in, stride, 1 + static_cast<int>(in % 3));
      for (std::int64_t t = 0; t < tokens; ++t) {
        const float scale = result.scale[static_cast<std::size_t>(t)];
        float largest = 0.0f;
        for (std::int64_t k = 0; k < in; ++k) {
          largest = std::max(largest, std::fabs(x[static_cast<std::size_t>(t * stride + k)]));
        }
        ASSERT_NEAR(scale, largest / 127.0f, largest * 0x1p-24f);
        for (std::int64_t k = 0; k < in; ++k) {
          const double value = x[static_cast<std::size_t>(t * stride + k)];
          const double q = result.q[static_cast<std::size_t>(t * in + k)];
          // Half a step, and the roundings of scale, its inverse and their products.
          ASSERT_LE(std::fabs(value - scale * q), 0.5 * scale * (1 + 0x1p-15)) << in << " " << k;
          ASSERT_LE(std::fabs(q), 127);
        }
      }
    }
  }
}

TEST(QuantizeTokens, ZerosAndWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr std::int64_t kIn = 37;
  std::vector<float> x(6 * kIn, 1.5f);
  for (std::int64_t k = 0; k < kIn; ++k) {
    x[static_cast<std::size_t>(kIn + k)] = 0.0f;
    x[static_cast<std::size_t>(4 * kIn + k)] = 1e-40f;
  }
  x[2 * kIn + 36] = kNan;
  x[3 * kIn] = -kInfinity;
  const Quantized result = quantize(x, 6, kIn, kIn);
  EXPECT_GT(result.scale[0], 0.0f);
  EXPECT_EQ(result.scale[1], 0.0f);
  EXPECT_TRUE(std::isnan(result.scale[2]));
  EXPECT_TRUE(std::isnan(result.scale[3]));
  EXPECT_EQ(result.scale[4], 0.0f);
  EXPECT_EQ(result.scale[5], result.scale[0]);
  for (std::int64_t k = 0; k < kIn; ++k) {
    EXPECT_EQ(result.q[static_cast<std::size_t>(k)], 127);
    for (std::int64_t t = 1; t < 5; ++t) {
      EXPECT_EQ(result.q[static_cast<std::size_t>(t * kIn + k)], 0);
    }
  }
}

TEST(QuantizeTokens, ThreadsChangeNothing) {
  Random random(2);
  std::normal_distribution<float> normal;
  constexpr std::int64_t kTokens = 130;
  constexpr std::int64_t kIn = 1000;
  std::vector<float> x(kTokens * kIn);
  for (float& v : x) v = normal(random);
  const Quantized one = quantize(x, kTokens, kIn, kIn);
  const Quantized four = quantize(x, kTokens, kIn, kIn, 4);
  EXPECT_EQ(one.q, four.q);
  EXPECT_EQ(one.scale, four.scale);
}

}  // namespace
}  // namespace gossamer::test
