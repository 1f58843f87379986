// SPDX-License-Identifier: BSD-3-Clause
// b: free, d: has the pattern, v: what is paid for their difference. In eigenvectors of H the
// ridge problem for b is a division, so that an iteration costs two matrix products.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "prune/product.h"
#include "prune/solve_check.h"

namespace gossamer {
namespace {

using detail::ConstRows;
using detail::fail;
using detail::Rows;

/// Supports are compared every so many iterations.
constexpr int kCheckEvery = 3;

struct Admm {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  ConstRows<float> vectors;
  ConstRows<float> values;
  AdmmOptions options;
  std::vector<float> pull;    ///< W₀·H
  std::vector<float> free;    ///< B
  std::vector<float> sparse;  ///< D
  std::vector<float> price;   ///< V
  std::vector<float> work;
  std::vector<double> scores;
  std::vector<std::uint8_t> mask;
  double penalty = 0.0;

  std::size_t size() const { return static_cast<std::size_t>(rows * cols); }
};

template <typename F>
void for_elements(const Admm& admm, const Solver& solver, const F& body) {
  parallel_for(solver.parallel, admm.rows, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = static_cast<std::size_t>(begin * admm.cols);
         i < static_cast<std::size_t>(end * admm.cols); ++i) {
      body(i);
    }
  });
}

/// to = from·Q, or from·Qᵀ.
void rotate(const Admm& admm, const std::vector<float>& from, bool back, std::vector<float>& to,
            const Solver& solver) {
  detail::multiply(solver, {.rows = admm.rows,
                            .cols = admm.cols,
                            .depth = admm.cols,
                            .a = from.data(),
                            .a_stride = admm.cols,
                            .a_transposed = false,
                            .b = admm.vectors.data,
                            .b_stride = admm.vectors.stride,
                            .b_transposed = back,
                            .c = to.data()});
}

/// Columns of the rotated matrix times f(eigenvalue).
template <typename F>
void scale_columns(const Admm& admm, std::vector<float>& matrix, const F& factor) {
  for (std::int64_t r = 0; r < admm.rows; ++r) {
    for (std::int64_t c = 0; c < admm.cols; ++c) {
      matrix[static_cast<std::size_t>(r * admm.cols + c)] *= factor(admm.values[0][c]);
    }
  }
}

/// B = (W₀·H − V + ρD)·(H + ρI)⁻¹.
void solve_free(Admm& admm, const Solver& solver) {
  const auto rho = static_cast<float>(admm.penalty);
  for_elements(admm, solver, [&](std::size_t i) {
    admm.free[i] = admm.pull[i] - admm.price[i] + rho * admm.sparse[i];
  });
  rotate(admm, admm.free, false, admm.work, solver);
  scale_columns(admm, admm.work, [&](float value) { return 1.0f / (value + rho); });
  rotate(admm, admm.work, true, admm.free, solver);
}

/// The mask of the nearest matrix that has the pattern: what is kept are the largest squares.
void select_support(Admm& admm, const Solver& solver) {
  const auto rho = static_cast<float>(admm.penalty);
  for_elements(admm, solver, [&](std::size_t i) {
    admm.work[i] = admm.free[i] + admm.price[i] / rho;
    admm.scores[i] = static_cast<double>(admm.work[i]) * admm.work[i];
  });
  const bool in_groups = admm.options.pattern.kind == Pattern::Kind::kNm ||
                         admm.options.pattern.kind == Pattern::Kind::kVnm;
  const std::int64_t segment = in_groups ? admm.options.segment : admm.cols;
  // A segment is a matrix of its own: groups of M start anew in it.
  ConstMatrixView scores = contiguous_view(static_cast<const void*>(admm.scores.data()),
                                           DType::kFloat64, admm.rows, admm.cols);
  MatrixView mask = contiguous_view(admm.mask.data(), DType::kBool, admm.rows, admm.cols);
  const auto split = [&](auto& view) {
    view.batch = admm.cols / segment;
    view.batch_stride = segment;
    view.cols = segment;
  };
  split(scores);
  split(mask);
  const Selection selection{scores, mask};
  select_masks({&selection, 1}, admm.options.pattern, admm.options.scope);
}

void project(Admm& admm, const Solver& solver) {
  select_support(admm, solver);
  const auto rho = static_cast<float>(admm.penalty);
  for_elements(admm, solver, [&](std::size_t i) {
    admm.sparse[i] = admm.mask[i] != 0 ? admm.work[i] : 0.0f;
    admm.price[i] += rho * (admm.free[i] - admm.sparse[i]);
  });
}

/// Raises ρ the faster the more of the support moved; false where it stands still for good.
bool update_penalty(Admm& admm, std::int64_t moved, std::int64_t kept, bool is_first) {
  const double share =
      static_cast<double>(moved) / static_cast<double>(std::max<std::int64_t>(kept, 1));
  if (moved == 0 && !is_first) return false;
  if (moved == 0) {
    // It never moved: the penalty was too high from the start.
    admm.penalty /= 5;
  } else {
    admm.penalty *= share > 0.1 ? 1.3 : share > 0.005 ? 1.2 : 1.1;
  }
  return true;
}

void start(Admm& admm, const Rows<float>& weight, const Solver& solver) {
  for (auto* buffer : {&admm.pull, &admm.free, &admm.sparse, &admm.price, &admm.work}) {
    buffer->assign(admm.size(), 0.0f);
  }
  admm.scores.resize(admm.size());
  admm.mask.assign(admm.size(), 0);
  for (std::int64_t r = 0; r < admm.rows; ++r) {
    std::copy_n(weight[r], admm.cols, admm.free.data() + r * admm.cols);
  }
  for (const float value : admm.free) {
    if (!std::isfinite(value)) {
      fail(ErrorCode::kInvalidArgument, "weight holds {}, expected finite numbers", value);
    }
  }
  admm.sparse = admm.free;
  rotate(admm, admm.free, false, admm.work, solver);
  scale_columns(admm, admm.work, [](float value) { return value; });
  rotate(admm, admm.work, true, admm.pull, solver);
}

AdmmResult iterate(Admm& admm, const Solver& solver) {
  AdmmResult result;
  select_support(admm, solver);
  std::vector<std::uint8_t> last = admm.mask;
  bool is_first = true;
  while (result.iterations < admm.options.iterations && !result.settled) {
    solve_free(admm, solver);
    project(admm, solver);
    ++result.iterations;
    if (result.iterations % kCheckEvery != 0) continue;
    std::int64_t moved = 0;
    std::int64_t kept = 0;
    for (std::size_t i = 0; i < admm.size(); ++i) {
      moved += admm.mask[i] != last[i] ? 1 : 0;
      kept += admm.mask[i];
    }
    result.settled = !update_penalty(admm, moved, kept, is_first);
    // Only a support that has moved can have settled.
    is_first = is_first && moved == 0 && admm.penalty > 1e-4;
    last = admm.mask;
  }
  result.penalty = admm.penalty;
  return result;
}

}  // namespace

AdmmResult admm(const MatrixView& weight, const ConstMatrixView& eigenvectors,
                const ConstMatrixView& eigenvalues, const MatrixView& mask,
                const AdmmOptions& options, const Solver& solver) {
  detail::check_positive("penalty", options.penalty);
  detail::check_positive("iterations", options.iterations);
  const auto rows = detail::checked_rows<float>(weight, "weight", -1, -1);
  const auto kept = detail::checked_rows<std::uint8_t>(mask, "mask", weight.rows, weight.cols);
  Admm state;
  state.rows = weight.rows;
  state.cols = weight.cols;
  state.vectors =
      detail::checked_rows<const float>(eigenvectors, "eigenvectors", weight.cols, weight.cols);
  state.values = detail::checked_rows<const float>(eigenvalues, "eigenvalues", 1, weight.cols);
  for (std::int64_t c = 0; c < weight.cols; ++c) {
    detail::check_positive("an eigenvalue", static_cast<double>(state.values[0][c]));
  }
  state.options = options;
  state.options.segment = detail::checked_segment(options.segment, weight.cols);
  state.penalty = options.penalty;
  if (state.size() == 0) return {};
  start(state, rows, solver);
  const AdmmResult result = iterate(state, solver);
  for (std::int64_t r = 0; r < state.rows; ++r) {
    std::copy_n(state.sparse.data() + r * state.cols, state.cols, rows[r]);
    std::copy_n(state.mask.data() + r * state.cols, state.cols, kept[r]);
  }
  return result;
}

}  // namespace gossamer
