// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <numeric>
#include <vector>

#include "core/fail.h"
#include "core/half.h"
#include "gossamer/solve.h"

namespace gossamer {

void lamp_scores(const ConstMatrixView& weight, const MatrixView& scores) {
  if (!is_weight_dtype(weight.dtype) || scores.dtype != DType::kFloat64) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "lamp: weight is {} and scores {}, expected a float type and float64",
                 dtype_name(weight.dtype), dtype_name(scores.dtype));
  }
  if (scores.batch != weight.batch || scores.rows != weight.rows || scores.cols != weight.cols) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "lamp: scores are [{}, {}, {}], the weight [{}, {}, {}]", scores.batch,
                 scores.rows, scores.cols, weight.batch, weight.rows, weight.cols);
  }
  const std::int64_t count = weight.batch * weight.rows * weight.cols;
  std::vector<double> squares(static_cast<std::size_t>(count));
  for (std::int64_t r = 0; weight.cols > 0 && r < weight.batch * weight.rows; ++r) {
    const std::int64_t at =
        r / weight.rows * weight.batch_stride + r % weight.rows * weight.row_stride;
    detail::load_row(weight.dtype, weight.data + at * dtype_bytes(weight.dtype), weight.cols,
                     weight.col_stride, squares.data() + r * weight.cols);
  }
  for (double& value : squares) value *= value;

  // Smallest first; among equals the higher index, so that the lower one counts as the larger.
  std::vector<std::int64_t> order(squares.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const double left = squares[static_cast<std::size_t>(a)];
    const double right = squares[static_cast<std::size_t>(b)];
    return left != right ? left < right : a > b;
  });
  double larger = 0.0;
  for (std::size_t i = order.size(); i-- > 0;) {
    const auto own = static_cast<std::size_t>(order[i]);
    larger += squares[own];
    const std::int64_t row = order[i] / weight.cols;
    const std::int64_t at = row / weight.rows * scores.batch_stride +
                            row % weight.rows * scores.row_stride +
                            order[i] % weight.cols * scores.col_stride;
    reinterpret_cast<double*>(scores.data)[at] = larger > 0 ? squares[own] / larger : 0.0;
  }
}

}  // namespace gossamer
