// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <vector>

#include "prune/product.h"
#include "prune/solve_check.h"

namespace gossamer {
namespace {

using detail::ConstRows;
using detail::Rows;

/// Tokens whose products are summed in float32 before they enter a float64 matrix.
constexpr std::int64_t kTokensInFloat = 4096;
/// Matrices up to so many elements are added by one thread: waking others costs more.
constexpr std::int64_t kSerialAdd = 1 << 16;

template <typename Sum>
void accumulate(const ConstRows<float>& x, const ConstRows<float>& y, const Rows<Sum>& gram,
                std::int64_t at_once, const Solver& solver) {
  std::vector<float> part(static_cast<std::size_t>(gram.rows * gram.cols));
  for (std::int64_t begin = 0; begin < x.rows; begin += at_once) {
    detail::multiply(solver, {.rows = gram.rows,
                              .cols = gram.cols,
                              .depth = std::min(at_once, x.rows - begin),
                              .a = x[begin],
                              .a_stride = x.stride,
                              .a_transposed = true,
                              .b = y[begin],
                              .b_stride = y.stride,
                              .b_transposed = false,
                              .c = part.data()});
    const ParallelFor pool = gram.rows * gram.cols <= kSerialAdd ? ParallelFor{} : solver.parallel;
    parallel_for(pool, gram.rows, [&](std::int64_t first, std::int64_t end) {
      for (std::int64_t r = first; r < end; ++r) {
        const float* const from = part.data() + r * gram.cols;
        for (std::int64_t c = 0; c < gram.cols; ++c) gram[r][c] += static_cast<Sum>(from[c]);
      }
    });
  }
}

}  // namespace

void accumulate_gram(const ConstMatrixView& x, const ConstMatrixView& y, const MatrixView& gram,
                     const Solver& solver) {
  const auto left = detail::checked_rows<const float>(x, "x", -1, -1);
  const auto right = detail::checked_rows<const float>(y, "y", x.rows, -1);
  if (left.rows == 0) return;
  if (gram.dtype == DType::kFloat64) {
    const auto sums = detail::checked_rows<double>(gram, "gram", x.cols, y.cols);
    accumulate(left, right, sums, kTokensInFloat, solver);
    return;
  }
  const auto sums = detail::checked_rows<float>(gram, "gram", x.cols, y.cols);
  accumulate(left, right, sums, left.rows, solver);
}

}  // namespace gossamer
