// SPDX-License-Identifier: BSD-3-Clause
// The solvers as a C++ program calls them: on borrowed threads, with the core's own products, and
// with a lent one. The definitions they are held to are in tests/python/test_solvers.py.
#include "gossamer/solve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "gossamer/openmp.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::code_of;
using test::Matrix;
using test::message_of;

Matrix random_matrix(std::int64_t rows, std::int64_t cols, unsigned seed) {
  Matrix m = test::zeros(DType::kFloat32, rows, cols);
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < m.size(); ++i) m.as<float>()[i] = normal(engine);
  return m;
}

Matrix full_mask(std::int64_t rows, std::int64_t cols, std::uint8_t value) {
  Matrix mask = test::zeros(DType::kBool, rows, cols);
  for (std::int64_t i = 0; i < mask.size(); ++i) mask.as<std::uint8_t>()[i] = value;
  return mask;
}

/// XᵀX/tokens + I, well conditioned.
Matrix damped_gram(std::int64_t size, unsigned seed) {
  const Matrix x = random_matrix(2 * size, size, seed);
  Matrix gram = test::zeros(DType::kFloat32, size, size);
  accumulate_gram(x.const_view(), x.const_view(), gram.view());
  for (std::int64_t i = 0; i < gram.size(); ++i) {
    gram.as<float>()[i] = gram.as<float>()[i] / static_cast<float>(2 * size);
  }
  for (std::int64_t i = 0; i < size; ++i) gram.as<float>()[i * size + i] += 1.0f;
  return gram;
}

/// A·B, one sum after the other in double.
std::vector<double> product(const Matrix& a, bool transpose_a, const Matrix& b) {
  const std::int64_t rows = transpose_a ? a.cols : a.rows;
  const std::int64_t depth = transpose_a ? a.rows : a.cols;
  std::vector<double> c(static_cast<std::size_t>(rows * b.cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < depth; ++k) {
      const double left = a.as<float>()[transpose_a ? k * a.cols + r : r * a.cols + k];
      for (std::int64_t i = 0; i < b.cols; ++i) {
        c[static_cast<std::size_t>(r * b.cols + i)] += left * b.as<float>()[k * b.cols + i];
      }
    }
  }
  return c;
}

TEST(Solve, GramIsTheProductWithOneAndManyThreads) {
  for (const auto& [tokens, left, right] :
       std::vector<std::array<std::int64_t, 3>>{{1, 1, 1}, {300, 5, 7}, {5000, 131, 17}}) {
    const Matrix x = random_matrix(tokens, left, 1);
    const Matrix y = random_matrix(tokens, right, 2);
    const std::vector<double> want = product(x, true, y);
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      for (const int threads : {1, 3}) {
        Matrix gram = test::zeros(dtype, left, right);
        accumulate_gram(x.const_view(), y.const_view(), gram.view(),
                        {.parallel = openmp_parallel_for(threads), .matmul = {}});
        for (std::int64_t i = 0; i < gram.size(); ++i) {
          // n products of numbers below 6, each sum rounded to float32.
          const double bound = static_cast<double>(tokens) * 36 * std::ldexp(1.0, -24);
          EXPECT_NEAR(test::element(gram, i), want[static_cast<std::size_t>(i)], bound);
        }
      }
    }
  }
}

TEST(Solve, ALentProductIsUsed) {
  struct Count {
    int calls = 0;
  } count;
  Solver solver;
  solver.matmul.self = &count;
  solver.matmul.run = [](void* self, const MatMulArgs& args) {
    ++static_cast<Count*>(self)->calls;
    std::fill_n(args.c, args.rows * args.cols, 2.0f);
  };
  const Matrix x = random_matrix(10, 3, 1);
  Matrix gram = test::zeros(DType::kFloat64, 3, 3);
  accumulate_gram(x.const_view(), x.const_view(), gram.view(), solver);
  EXPECT_EQ(count.calls, 1);
  EXPECT_EQ(gram.as<double>()[4], 2.0);
}

TEST(Solve, ResultsDoNotDependOnThreads) {
  const Matrix gram = damped_gram(70, 3);
  const Matrix dense = random_matrix(33, 70, 4);
  std::vector<Matrix> sweeps, fits, masks;
  for (const int threads : {1, 2, 5}) {
    const Solver solver{.parallel = openmp_parallel_for(threads), .matmul = {}};
    Matrix weight = dense;
    Matrix mask = full_mask(33, 70, 0);
    // Any upper triangle with a positive diagonal is a factor.
    Matrix factor = gram;
    for (std::int64_t r = 0; r < 70; ++r) {
      for (std::int64_t c = 0; c < r; ++c) factor.as<float>()[r * 70 + c] = 0.0f;
    }
    ObsOptions options;
    options.pattern = Pattern::nm(2, 4);
    options.block = 16;
    obs_sweep(weight.view(), factor.const_view(), mask.view(), options, solver);
    EXPECT_FALSE(find_violation(weight.const_view(), Pattern::nm(2, 4)));
    sweeps.push_back(weight);
    refit_on_support(weight.view(), gram.const_view(), dense.const_view(), mask.const_view(),
                     {.iterations = 9, .tolerance = 1e-6}, solver);
    fits.push_back(weight);
    swap_refine(dense.const_view(), gram.const_view(), mask.view(), {.group = 4}, solver);
    masks.push_back(mask);
  }
  for (std::size_t i = 1; i < sweeps.size(); ++i) {
    EXPECT_EQ(sweeps[i], sweeps[0]);
    EXPECT_EQ(fits[i], fits[0]);
    EXPECT_EQ(masks[i], masks[0]);
  }
}

TEST(Solve, RefitSolvesWhatItSaysItSolved) {
  const Matrix gram = damped_gram(24, 5);
  const Matrix target = random_matrix(6, 24, 6);
  Matrix mask = full_mask(6, 24, 1);
  for (std::int64_t i = 0; i < mask.size(); i += 3) mask.as<std::uint8_t>()[i] = 0;
  Matrix weight = test::zeros(DType::kFloat32, 6, 24);
  const RefitResult result =
      refit_on_support(weight.view(), gram.const_view(), target.const_view(), mask.const_view(),
                       {.iterations = 100, .tolerance = 1e-6});
  EXPECT_LE(result.residual, 1e-6);
  EXPECT_LT(result.iterations, 30);
  const std::vector<double> got = product(weight, false, gram);
  for (std::int64_t i = 0; i < mask.size(); ++i) {
    if (mask.as<std::uint8_t>()[i] == 0) {
      EXPECT_EQ(weight.as<float>()[i], 0.0f);
    } else {
      EXPECT_NEAR(got[static_cast<std::size_t>(i)], target.as<float>()[i], 1e-4);
    }
  }
}

TEST(Solve, TransposableMasksTakeStridedViews) {
  const Matrix scores = random_matrix(12, 20, 7);
  Matrix mask = full_mask(12, 20, 0);
  Matrix flipped = full_mask(12, 20, 0);
  transposable_mask(scores.const_view(), 2, 4, mask.view());
  const auto transpose = [](auto view) {
    std::swap(view.rows, view.cols);
    std::swap(view.row_stride, view.col_stride);
    return view;
  };
  transposable_mask(transpose(scores.const_view()), 2, 4, transpose(flipped.view()),
                    openmp_parallel_for(2));
  double kept = 0;
  double other = 0;
  for (std::int64_t i = 0; i < mask.size(); ++i) {
    kept += mask.as<std::uint8_t>()[i] * scores.as<float>()[i];
    other += flipped.as<std::uint8_t>()[i] * scores.as<float>()[i];
  }
  EXPECT_NEAR(kept, other, 1e-4);
  EXPECT_FALSE(find_violation(mask.const_view(), Pattern::nm(2, 4)));
  EXPECT_FALSE(find_violation(transpose(mask.const_view()), Pattern::nm(2, 4)));
}

TEST(Solve, ArgumentsAreChecked) {
  const Matrix gram = damped_gram(8, 8);
  const Matrix dense = random_matrix(3, 8, 9);
  Matrix mask = full_mask(3, 8, 1);
  Matrix weight = dense;
  const auto refit = [&](const ConstMatrixView& matrix, double tolerance) {
    refit_on_support(weight.view(), matrix, dense.const_view(), mask.const_view(),
                     {.iterations = 3, .tolerance = tolerance});
  };
  EXPECT_EQ(message_of([&] { refit(dense.const_view(), 1e-5); }),
            "gram is [1, 3, 8], expected [1, 8, 8]");
  EXPECT_EQ(message_of([&] { refit(mask.const_view(), 1e-5); }), "gram is bool, expected float32");
  EXPECT_EQ(message_of([&] { refit(gram.const_view(), 0); }),
            "tolerance is 0, expected more than 0");
  ConstMatrixView strided = gram.const_view();
  strided.col_stride = 2;
  EXPECT_EQ(message_of([&] { refit(strided, 1e-5); }),
            "gram has 2 elements between its columns, expected 1; make it contiguous");
  EXPECT_EQ(code_of([&] {
              swap_refine(dense.const_view(), gram.const_view(), mask.view(), {.group = -1});
            }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(weight, dense);
}

}  // namespace
}  // namespace gossamer
