// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/half.h"
#include "gossamer/linear.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::Matrix;
using test::matrix_f32;
using test::pack_matrix;

// ---- Conversions of the small types. ----

/// The value of a half by its definition.
double half_by_definition(std::uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const double mantissa = bits & 1023;
  if (exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024.0 + mantissa, exponent - 25);
}

TEST(HalfTest, EveryFloat16HasItsValueAndComesBack) {
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double expected = half_by_definition(bits);
    const float value = detail::float16_to_float(bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(detail::float16_to_float(detail::float_to_float16(value))));
      continue;
    }
    ASSERT_EQ(value, expected) << i;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << i;
    ASSERT_EQ(detail::float_to_float16(value), bits) << i;
  }
}

TEST(HalfTest, Float16RoundsToTheNearestTiesToEven) {
  for (std::uint32_t i = 0; i < 0x7bff; ++i) {  // every gap between finite neighbours
    const auto low = static_cast<std::uint16_t>(i);
    const auto high = static_cast<std::uint16_t>(i + 1);
    const float middle =
        static_cast<float>((half_by_definition(low) + half_by_definition(high)) / 2);
    ASSERT_EQ(detail::float_to_float16(middle), (low & 1) == 0 ? low : high) << i;
    ASSERT_EQ(detail::float_to_float16(std::nextafterf(middle, 0.0f)), low) << i;
    ASSERT_EQ(detail::float_to_float16(std::nextafterf(middle, 1e9f)), high) << i;
    ASSERT_EQ(detail::float_to_float16(-middle), 0x8000 | ((low & 1) == 0 ? low : high)) << i;
  }
  EXPECT_EQ(detail::float_to_float16(65519.996f), 0x7bff);
  EXPECT_EQ(detail::float_to_float16(65520.0f), 0x7c00);
  EXPECT_EQ(detail::float_to_float16(1e-30f), 0);
}

TEST(HalfTest, BFloat16RoundsToTheNearestTiesToEven) {
  for (std::uint32_t i = 0; i < 0x7f80; ++i) {
    const auto low = static_cast<std::uint16_t>(i);
    const float value = detail::bfloat16_to_float(low);
    ASSERT_EQ(detail::float_to_bfloat16(value), low);
    const float middle = std::bit_cast<float>((i << 16) | 0x8000u);
    ASSERT_EQ(detail::float_to_bfloat16(middle), (low & 1) == 0 ? low : low + 1) << i;
    ASSERT_EQ(detail::float_to_bfloat16(std::nextafterf(middle, 0.0f)), low) << i;
  }
  EXPECT_TRUE(std::isnan(
      detail::bfloat16_to_float(detail::float_to_bfloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(HalfTest, Float8) {
  EXPECT_EQ(detail::float8_e4m3_to_float(0x00), 0.0f);
  EXPECT_EQ(detail::float8_e4m3_to_float(0x01), std::ldexp(1.0f, -9));
  EXPECT_EQ(detail::float8_e4m3_to_float(0x07), 7 * std::ldexp(1.0f, -9));
  EXPECT_EQ(detail::float8_e4m3_to_float(0x08), std::ldexp(1.0f, -6));
  EXPECT_EQ(detail::float8_e4m3_to_float(0x38), 1.0f);
  EXPECT_EQ(detail::float8_e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(detail::float8_e4m3_to_float(0xb8), -1.0f);
  EXPECT_TRUE(std::isnan(detail::float8_e4m3_to_float(0x7f)));
  EXPECT_TRUE(std::isnan(detail::float8_e4m3_to_float(0xff)));
}

TEST(HalfTest, DoublesAreRoundedOnce) {
  // Just above the middle of 1 and its successor: float alone would land on the middle, then on 1.
  Matrix one = test::zeros(DType::kFloat16, 1, 1);
  test::set_element(one, 0, 1.0 + std::ldexp(1.0, -11) + std::ldexp(1.0, -40));
  EXPECT_EQ(test::element(one, 0), 1.0 + std::ldexp(1.0, -10));
  Matrix brain = test::zeros(DType::kBFloat16, 1, 1);
  test::set_element(brain, 0, 1.0 + std::ldexp(1.0, -8) + std::ldexp(1.0, -40));
  EXPECT_EQ(test::element(brain, 0), 1.0 + std::ldexp(1.0, -7));
  test::set_element(brain, 0, -1e300);
  EXPECT_EQ(test::element(brain, 0), -std::numeric_limits<double>::infinity());
  test::set_element(brain, 0, -1e-300);
  EXPECT_EQ(test::element(brain, 0), 0.0);
  test::set_element(brain, 0, std::nan(""));
  EXPECT_TRUE(std::isnan(test::element(brain, 0)));
}

// ---- The reference. ----

/// A call with contiguous operands.
LinearArgs args_of(const PackedView& weight, const Matrix& x, Matrix& y) {
  LinearArgs args{.weight = weight, .parallel = {}};
  args.tokens = x.rows;
  args.x = x.bytes.data();
  args.x_stride = x.cols;
  args.x_batch_stride = x.rows * x.cols;
  args.y = y.bytes.data();
  args.y_stride = y.cols;
  args.y_batch_stride = y.rows * y.cols;
  return args;
}

TEST(ReferenceTest, ByHand) {
  const PackedWeight w =
      pack_matrix(matrix_f32(2, 4, {1, 0, 0, 2, 0, 3, -4, 0}), Pattern::parse("2:4"), Layout::kNm);
  const Matrix x = matrix_f32(3, 4, {1, 2, 3, 4, 0, 0, 0, 0, -1, 1, -1, 1});
  Matrix y = test::zeros(DType::kFloat32, 3, 2);
  LinearArgs args = args_of(w, x, y);
  reference_linear(args);
  EXPECT_EQ(y, matrix_f32(3, 2, {9, -6, 0, 0, 1, 7}));
  const Matrix bias = matrix_f32(1, 2, {10, -3});
  const Matrix residual = matrix_f32(3, 2, {0, 1, 2, 3, 4, 5});
  args.bias = bias.bytes.data();
  args.residual = residual.bytes.data();
  args.residual_stride = 2;
  reference_linear(args);
  EXPECT_EQ(y, matrix_f32(3, 2, {19, -8, 12, 0, 15, 9}));
  args.activation = Activation::kRelu;
  reference_linear(args);
  EXPECT_EQ(y, matrix_f32(3, 2, {19, 0, 12, 0, 15, 9}));
}

TEST(ReferenceTest, EveryLayoutAndDTypeGivesTheDenseProduct) {
  test::Random random(1);
  for (const DType dtype : test::weight_dtypes()) {
    for (const char* text :
         {"2:4", "unstructured:0.7", "block:4x4:0.5", "fanin:0.6", "vnm:4:2:8"}) {
      const Pattern pattern = Pattern::parse(text);
      const Matrix w = test::random_sparse(random, dtype, pattern, 7, 70, 2);
      const bool is_small = dtype == DType::kInt8 || dtype == DType::kFloat8E4M3;
      const DType activation = is_small ? DType::kFloat32 : dtype;
      const Matrix x = test::random_matrix(random, activation, 3, 70, 2);
      Matrix expected = test::zeros(activation, 3, 7, 2);
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t i = 0; i < 21; ++i) {
          double sum = 0;
          for (std::int64_t k = 0; k < 70; ++k) {
            sum += test::element(x, (b * 3 + i / 7) * 70 + k) *
                   test::element(w, (b * 7 + i % 7) * 70 + k);
          }
          test::set_element(expected, b * 21 + i, sum);
        }
      }
      for (const Layout layout : test::all_layouts()) {
        if (!test::layout_holds(layout, pattern)) continue;
        const PackedWeight packed = pack_matrix(w, pattern, layout);
        Matrix y = test::zeros(activation, 3, 7, 2);
        reference_linear(args_of(packed, x, y));
        // The same additions in the same order, zeros left out: equal to the bit.
        EXPECT_EQ(y, expected) << text << " " << layout_name(layout) << " " << dtype_name(dtype);
      }
    }
  }
}

TEST(ReferenceTest, WhatIsPrunedIsNotRead) {
  const float nan = std::nanf("");
  const PackedWeight w =
      pack_matrix(matrix_f32(1, 4, {1, 0, 0, 2}), Pattern::parse("2:4"), Layout::kNm);
  Matrix y = test::zeros(DType::kFloat32, 1, 1);
  Matrix x = matrix_f32(1, 4, {1, nan, std::numeric_limits<float>::infinity(), 1});
  reference_linear(args_of(w, x, y));
  EXPECT_EQ(y.as<float>()[0], 3.0f);
  x.as<float>()[0] = nan;
  LinearArgs args = args_of(w, x, y);
  args.activation = Activation::kRelu;
  reference_linear(args);
  EXPECT_TRUE(std::isnan(y.as<float>()[0]));
}

TEST(ReferenceTest, StridesAndBatches) {
  Matrix w = test::zeros(DType::kFloat64, 1, 2, 2);
  const std::vector<double> weights{1, 2, 3, 0};
  std::memcpy(w.bytes.data(), weights.data(), w.bytes.size());
  const PackedWeight packed = pack_matrix(w, Pattern::parse("unstructured"), Layout::kBitmask);
  const std::vector<double> x{1, 1, -9, 2, 2, -9, /**/ 3, 3, -9, 4, 4, -9};
  const std::vector<double> bias{100, 200};
  const std::vector<double> residual{0.5, -9, 0.25, -9, /**/ 0.125, -9, 0.0625, -9};
  std::vector<double> y(10, -1.0);
  LinearArgs args{.weight = packed, .parallel = {}};
  args.tokens = 2;
  args.x = x.data();
  args.x_stride = 3;
  args.x_batch_stride = 6;
  args.y = y.data();
  args.y_stride = 2;
  args.y_batch_stride = 5;
  args.bias = bias.data();
  args.residual = residual.data();
  args.residual_stride = 2;
  args.residual_batch_stride = 4;
  reference_linear(args);
  EXPECT_EQ(y, (std::vector<double>{103.5, -1, 106.25, -1, -1, 209.125, -1, 212.0625, -1, -1}));
}

TEST(ReferenceTest, EmptyInputsLeaveTheBias) {
  const PackedWeight w = pack_matrix(test::zeros(DType::kFloat32, 2, 0),
                                     Pattern::parse("unstructured"), Layout::kBitmask);
  const Matrix x = test::zeros(DType::kFloat32, 1, 0);
  const Matrix bias = matrix_f32(1, 2, {1, 2});
  Matrix y = test::zeros(DType::kFloat32, 1, 2);
  LinearArgs args = args_of(w, x, y);
  args.bias = bias.bytes.data();
  reference_linear(args);
  EXPECT_EQ(y, bias);
  args.tokens = 0;
  args.y = nullptr;
  reference_linear(args);
  EXPECT_EQ(y, bias);
}

TEST(DescribeTest, SaysWhatTheWeightIs) {
  const PackedWeight w = pack_matrix(matrix_f32(2, 4, {1, 0, 0, 2, 0, 3, 0, 0}),
                                     Pattern::parse("2:4"), Layout::kBitmask);
  const LinearDesc desc = describe(w, {true, false, Activation::kRelu});
  EXPECT_EQ(desc.out, 2);
  EXPECT_EQ(desc.in, 4);
  EXPECT_EQ(desc.batch, 1);
  EXPECT_EQ(desc.density, 3.0 / 8.0);
  EXPECT_EQ(desc.pattern, Pattern::nm(2, 4));
  EXPECT_TRUE(desc.epilogue.bias);
  EXPECT_EQ(desc.activation_dtype, DType::kFloat32);
  const PackedWeight small = pack_matrix(test::zeros(DType::kInt8, 1, 1),
                                         Pattern::parse("unstructured"), Layout::kBitmask);
  EXPECT_EQ(describe(small).activation_dtype, DType::kFloat32);
  EXPECT_EQ(describe(small).density, 0.0);
}

}  // namespace
}  // namespace gossamer
