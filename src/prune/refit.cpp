// SPDX-License-Identifier: BSD-3-Clause
// Conjugate gradients for all rows at once: one matrix product P·H an iteration, everything else by
// rows. A row that is done keeps a zero direction, so that the product leaves it alone.
#include <algorithm>
#include <cmath>
#include <vector>

#include "prune/product.h"
#include "prune/solve_check.h"

namespace gossamer {
namespace {

using detail::ConstRows;
using detail::fail;
using detail::Rows;

struct Refit {
  Rows<float> weight;
  ConstRows<float> gram;
  ConstRows<float> target;
  ConstRows<std::uint8_t> mask;
  std::vector<float> scale;      ///< 1/diag(H)
  std::vector<float> residual;   ///< M⊙(T − B·H)
  std::vector<float> direction;  ///< P
  std::vector<float> product;    ///< P·H
  std::vector<double> energy;    ///< ⟨R, R/diag(H)⟩ of each row, 0 once it is done
  std::vector<double> goal;      ///< the energy at which a row is done
};

std::vector<float> inverse_diagonal(const ConstRows<float>& gram) {
  std::vector<float> scale(static_cast<std::size_t>(gram.cols));
  for (std::int64_t c = 0; c < gram.cols; ++c) {
    const float pivot = gram[c][c];
    if (!(std::isfinite(pivot) && pivot > 0)) {
      fail(ErrorCode::kInvalidArgument,
           "gram: element {} of the diagonal is {}, expected a positive number; damp it", c, pivot);
    }
    scale[static_cast<std::size_t>(c)] = 1.0f / pivot;
  }
  return scale;
}

void multiply(Refit& refit, const float* rows, std::int64_t stride, const Solver& solver) {
  detail::multiply(solver, {.rows = refit.weight.rows,
                            .cols = refit.gram.cols,
                            .depth = refit.gram.rows,
                            .a = rows,
                            .a_stride = stride,
                            .a_transposed = false,
                            .b = refit.gram.data,
                            .b_stride = refit.gram.stride,
                            .b_transposed = false,
                            .c = refit.product.data()});
}

void start_row(Refit& refit, std::int64_t row, double tolerance) {
  const std::int64_t cols = refit.weight.cols;
  const auto at = static_cast<std::size_t>(row * cols);
  double energy = 0.0;
  double target_energy = 0.0;
  for (std::int64_t c = 0; c < cols; ++c) {
    const auto i = at + static_cast<std::size_t>(c);
    const double scale = refit.scale[static_cast<std::size_t>(c)];
    const float target = refit.mask[row][c] != 0 ? refit.target[row][c] : 0.0f;
    const float residual = refit.mask[row][c] != 0 ? target - refit.product[i] : 0.0f;
    refit.residual[i] = residual;
    refit.direction[i] = residual * static_cast<float>(scale);
    energy += residual * static_cast<double>(refit.direction[i]);
    target_energy += static_cast<double>(target) * target * scale;
  }
  if (!std::isfinite(energy + target_energy)) {
    fail(ErrorCode::kInvalidArgument,
         "row {}: weight, gram or target is not finite; look for NaN in the activations", row);
  }
  const auto r = static_cast<std::size_t>(row);
  refit.goal[r] = tolerance * tolerance * target_energy;
  refit.energy[r] = energy;
  if (energy > refit.goal[r]) return;
  std::fill_n(refit.direction.begin() + row * cols, cols, 0.0f);
}

/// One step along a row's direction, and the next direction.
void advance_row(Refit& refit, std::int64_t row) {
  const auto r = static_cast<std::size_t>(row);
  const std::int64_t cols = refit.weight.cols;
  if (refit.energy[r] <= refit.goal[r]) return;
  float* const direction = refit.direction.data() + row * cols;
  float* const residual = refit.residual.data() + row * cols;
  const float* const product = refit.product.data() + row * cols;
  double curvature = 0.0;
  for (std::int64_t c = 0; c < cols; ++c) {
    curvature += static_cast<double>(direction[c]) * product[c];
  }
  // Rounding leaves a direction without curvature where the row is solved as well as float32 can.
  const bool stuck = !(curvature > 0);
  const auto step = stuck ? 0.0f : static_cast<float>(refit.energy[r] / curvature);
  double energy = 0.0;
  for (std::int64_t c = 0; c < cols; ++c) {
    if (refit.mask[row][c] == 0) continue;
    refit.weight[row][c] += step * direction[c];
    residual[c] -= step * product[c];
    energy +=
        static_cast<double>(residual[c]) * residual[c] * refit.scale[static_cast<std::size_t>(c)];
  }
  const auto keep = static_cast<float>(energy / refit.energy[r]);
  refit.energy[r] = energy;
  const bool done = stuck || energy <= refit.goal[r];
  if (stuck) refit.goal[r] = energy;
  for (std::int64_t c = 0; c < cols; ++c) {
    const float fresh = refit.scale[static_cast<std::size_t>(c)] * residual[c];
    direction[c] = done || refit.mask[row][c] == 0 ? 0.0f : fresh + keep * direction[c];
  }
}

bool all_done(const Refit& refit) {
  for (std::size_t r = 0; r < refit.energy.size(); ++r) {
    if (refit.energy[r] > refit.goal[r]) return false;
  }
  return true;
}

double worst_residual(const Refit& refit, double tolerance) {
  double worst = 0.0;
  for (std::size_t r = 0; r < refit.energy.size(); ++r) {
    const double target = refit.goal[r] / (tolerance * tolerance);
    if (target > 0) worst = std::max(worst, std::sqrt(refit.energy[r] / target));
  }
  return worst;
}

void check_start(const Refit& refit) {
  for (std::int64_t r = 0; r < refit.weight.rows; ++r) {
    for (std::int64_t c = 0; c < refit.weight.cols; ++c) {
      if (refit.mask[r][c] != 0 || refit.weight[r][c] == 0) continue;
      fail(ErrorCode::kInvalidArgument,
           "weight: row {}, column {} is {} where the mask drops it, expected 0", r, c,
           refit.weight[r][c]);
    }
  }
}

}  // namespace

RefitResult refit_on_support(const MatrixView& weight, const ConstMatrixView& gram,
                             const ConstMatrixView& target, const ConstMatrixView& mask,
                             const RefitOptions& options, const Solver& solver) {
  detail::check_positive("tolerance", options.tolerance);
  Refit refit;
  refit.weight = detail::checked_rows<float>(weight, "weight", -1, -1);
  refit.gram = detail::checked_rows<const float>(gram, "gram", weight.cols, weight.cols);
  refit.target = detail::checked_rows<const float>(target, "target", weight.rows, weight.cols);
  refit.mask = detail::checked_rows<const std::uint8_t>(mask, "mask", weight.rows, weight.cols);
  refit.scale = inverse_diagonal(refit.gram);
  check_start(refit);
  const auto elements = static_cast<std::size_t>(weight.rows * weight.cols);
  for (auto* buffer : {&refit.residual, &refit.direction, &refit.product}) buffer->resize(elements);
  refit.energy.resize(static_cast<std::size_t>(weight.rows));
  refit.goal.resize(static_cast<std::size_t>(weight.rows));

  multiply(refit, refit.weight.data, refit.weight.stride, solver);
  for (std::int64_t r = 0; r < weight.rows; ++r) start_row(refit, r, options.tolerance);
  RefitResult result;
  while (result.iterations < options.iterations && !all_done(refit)) {
    multiply(refit, refit.direction.data(), weight.cols, solver);
    parallel_for(solver.parallel, weight.rows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) advance_row(refit, r);
    });
    ++result.iterations;
  }
  result.residual = worst_residual(refit, options.tolerance);
  return result;
}

}  // namespace gossamer
