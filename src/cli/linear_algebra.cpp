// SPDX-License-Identifier: BSD-3-Clause
#include "cli/linear_algebra.h"

#include <fmt/format.h>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>

#include "cli/threads.h"
#include "gossamer/error.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Doubles = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstFloats = Eigen::Map<const Floats, 0, Eigen::OuterStride<>>;

constexpr double kMostDamping = 1.0;

ConstFloats lying(const float* data, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  return {data, rows, cols, Eigen::OuterStride<>(stride)};
}

/// Rows [begin, end) of C = A·B.
void multiply_rows(const MatMulArgs& m, std::int64_t begin, std::int64_t end) {
  const std::int64_t count = end - begin;
  Eigen::Map<Floats> c(m.c + begin * m.cols, count, m.cols);
  const auto with = [&](const auto& a) {
    if (m.b_transposed) {
      c.noalias() = a * lying(m.b, m.cols, m.depth, m.b_stride).transpose();
    } else {
      c.noalias() = a * lying(m.b, m.depth, m.cols, m.b_stride);
    }
  };
  if (m.a_transposed) {
    with(lying(m.a + begin, m.depth, count, m.a_stride).transpose());
  } else {
    with(lying(m.a + begin * m.a_stride, count, m.depth, m.a_stride));
  }
}

void multiply(void*, const MatMulArgs& args) {
  parallel_for(machine_threads(), args.rows,
               [&](std::int64_t begin, std::int64_t end) { multiply_rows(args, begin, end); });
}

}  // namespace

Solver machine_solver() {
  Solver solver;
  solver.parallel = machine_threads();
  solver.matmul.run = multiply;
  return solver;
}

// With A upper triangular and H = A·Aᵀ (the Cholesky factor of H read from its last row up), U is
// the inverse of A: one factorisation and one triangular inverse.
std::vector<float> inverse_factor(std::span<const double> gram, std::int64_t size, double& damping,
                                  const std::string& name) {
  const Eigen::Map<const Doubles> g(gram.data(), size, size);
  const double asked = damping;
  const double mean = g.diagonal().mean();
  while (true) {
    Doubles flipped = g.reverse();
    flipped.diagonal().array() += damping * mean;
    const Eigen::LLT<Doubles, Eigen::Lower> cholesky(flipped);
    if (cholesky.info() == Eigen::Success && mean > 0) {
      const Doubles lower = cholesky.matrixL();
      Doubles inverse = Doubles::Identity(size, size);
      lower.triangularView<Eigen::Lower>().solveInPlace(inverse);
      const Floats upper = inverse.reverse().cast<float>();
      return {upper.data(), upper.data() + upper.size()};
    }
    if (damping * 10 > kMostDamping) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}: the Gram matrix of its inputs is not positive definite, with a "
                              "damping from {} up to {} of its mean diagonal; take statistics of "
                              "more data, or leave the weight out with --exclude",
                              io::shown_name(name), asked, damping));
    }
    damping = std::max(damping * 10, 1e-6);
  }
}

double energy(std::span<const float> rows, std::span<const double> gram, std::int64_t size) {
  const Eigen::Map<const Doubles> g(gram.data(), size, size);
  const auto count = static_cast<std::int64_t>(rows.size()) / size;
  // Panels of rows: the product in float64 takes no more memory than a few of them.
  constexpr std::int64_t kPanel = 64;
  double sum = 0.0;
  for (std::int64_t row = 0; row < count; row += kPanel) {
    const std::int64_t high = std::min(kPanel, count - row);
    const Doubles w = lying(rows.data() + row * size, high, size, size).cast<double>();
    sum += (w * g).cwiseProduct(w).sum();
  }
  return sum;
}

}  // namespace gossamer::cli
