// SPDX-License-Identifier: BSD-3-Clause
// With z the dropped part of a row w and c = G·z, taking u back and dropping p changes z·G·zᵀ by
//   Δ(u, p) = (G_uu·w_u² − 2·w_u·c_u) + (G_pp·w_p² + 2·w_p·c_p) − 2·w_u·w_p·G_up
// The best pair is made, c follows with two columns of G, and so on until no pair has Δ < 0.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "prune/solve_check.h"

#include "gossamer/solve.h"

namespace gossamer {
namespace {

using detail::ConstRows;
using detail::Rows;

/// Pairs that are tried before all are: the cheapest to take back with the cheapest to drop.
constexpr std::size_t kShortlist = 32;

struct Swap {
  double change = 0.0;
  std::int64_t take = -1;
  std::int64_t drop = -1;
};

/// One row with what its swaps need.
class RowSwaps {
 public:
  RowSwaps(const float* weight, const ConstRows<float>& gram, std::uint8_t* mask)
      : weight_(weight), gram_(gram), mask_(mask), cols_(gram.cols), pull_(size(), 0.0) {
    for (std::int64_t d = 0; d < cols_; ++d) {
      if (mask_[d] == 0) add_column(d, weight_[d]);
    }
    // Changes below what rounding of the row's own loss can fake are none.
    double loss = 0.0;
    for (std::int64_t i = 0; i < cols_; ++i) {
      if (mask_[i] == 0)
        loss += static_cast<double>(weight_[i]) * pull_[static_cast<std::size_t>(i)];
    }
    threshold_ = -1e-9 * std::fabs(loss);
  }

  /// The best swap inside columns [begin, end); none where nothing lowers the loss.
  Swap best(std::int64_t begin, std::int64_t end) {
    list(begin, end);
    if (taken_.size() > kShortlist || dropped_.size() > kShortlist) {
      std::vector<std::int64_t> take = taken_;
      std::vector<std::int64_t> drop = dropped_;
      shorten(take, [this](std::int64_t i) { return take_cost(i); });
      shorten(drop, [this](std::int64_t i) { return drop_cost(i); });
      const Swap quick = best_of(take, drop);
      if (quick.take >= 0) return quick;
    }
    return best_of(taken_, dropped_);
  }

  void make(const Swap& swap) {
    mask_[swap.take] = 1;
    mask_[swap.drop] = 0;
    add_column(swap.take, -weight_[swap.take]);
    add_column(swap.drop, weight_[swap.drop]);
  }

 private:
  std::size_t size() const { return static_cast<std::size_t>(cols_); }
  double own(std::int64_t i) const {
    return static_cast<double>(weight_[i]) * weight_[i] * gram_[i][i];
  }
  double take_cost(std::int64_t u) const {
    return own(u) - 2.0 * weight_[u] * pull_[static_cast<std::size_t>(u)];
  }
  double drop_cost(std::int64_t p) const {
    return own(p) + 2.0 * weight_[p] * pull_[static_cast<std::size_t>(p)];
  }

  void add_column(std::int64_t col, double factor) {
    const float* const row = gram_[col];
    for (std::int64_t i = 0; i < cols_; ++i) pull_[static_cast<std::size_t>(i)] += factor * row[i];
  }

  void list(std::int64_t begin, std::int64_t end) {
    taken_.clear();
    dropped_.clear();
    for (std::int64_t i = begin; i < end; ++i) (mask_[i] == 0 ? taken_ : dropped_).push_back(i);
  }

  template <typename F>
  static void shorten(std::vector<std::int64_t>& list, const F& cost) {
    if (list.size() <= kShortlist) return;
    std::nth_element(list.begin(), list.begin() + kShortlist, list.end(),
                     [&](std::int64_t a, std::int64_t b) {
                       const double left = cost(a);
                       const double right = cost(b);
                       return left != right ? left < right : a < b;
                     });
    list.resize(kShortlist);
    std::sort(list.begin(), list.end());
  }

  Swap best_of(const std::vector<std::int64_t>& take, const std::vector<std::int64_t>& drop) const {
    Swap best{threshold_, -1, -1};
    for (const std::int64_t p : drop) {
      const double drop_p = drop_cost(p);
      const float* const row = gram_[p];
      for (const std::int64_t u : take) {
        const double change = take_cost(u) + drop_p - 2.0 * weight_[u] * weight_[p] * row[u];
        if (change < best.change) best = {change, u, p};
      }
    }
    return best;
  }

  const float* weight_;
  ConstRows<float> gram_;
  std::uint8_t* mask_;
  std::int64_t cols_;
  std::vector<double> pull_;  ///< c = G·z
  std::vector<std::int64_t> taken_;
  std::vector<std::int64_t> dropped_;
  double threshold_ = 0.0;
};

struct Groups {
  std::int64_t size = 0;
  std::int64_t segment = 0;
  std::int64_t end(std::int64_t begin) const {
    return std::min(begin + size, (begin / segment + 1) * segment);
  }
};

/// The best swap of a whole row.
Swap best_of_row(RowSwaps& row, std::int64_t cols, const Groups& groups) {
  Swap best;
  for (std::int64_t begin = 0; begin < cols; begin = groups.end(begin)) {
    const Swap swap = row.best(begin, groups.end(begin));
    if (swap.take >= 0 && (best.take < 0 || swap.change < best.change)) best = swap;
  }
  return best;
}

std::int64_t refine_row(RowSwaps& row, std::int64_t cols, const Groups& groups,
                        std::int64_t max_swaps) {
  std::int64_t made = 0;
  while (max_swaps == 0 || made < max_swaps) {
    const Swap swap = best_of_row(row, cols, groups);
    if (swap.take < 0) break;
    row.make(swap);
    ++made;
  }
  return made;
}

}  // namespace

std::int64_t swap_refine(const ConstMatrixView& weight, const ConstMatrixView& gram,
                         const MatrixView& mask, const SwapOptions& options, const Solver& solver) {
  const auto rows = detail::checked_rows<const float>(weight, "weight", -1, -1);
  const auto matrix = detail::checked_rows<const float>(gram, "gram", weight.cols, weight.cols);
  const auto kept = detail::checked_rows<std::uint8_t>(mask, "mask", weight.rows, weight.cols);
  if (options.group < 0 || options.max_swaps < 0) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "group {} and max_swaps {}: 0 or more is accepted for both", options.group,
                 options.max_swaps);
  }
  if (rows.cols == 0) return 0;
  const std::int64_t segment = detail::checked_segment(options.segment, rows.cols);
  const Groups groups =
      options.group == 0 ? Groups{rows.cols, rows.cols} : Groups{options.group, segment};
  std::vector<std::int64_t> made(static_cast<std::size_t>(rows.rows));
  parallel_for(solver.parallel, rows.rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      RowSwaps row(rows[r], matrix, kept[r]);
      made[static_cast<std::size_t>(r)] = refine_row(row, rows.cols, groups, options.max_swaps);
    }
  });
  return std::accumulate(made.begin(), made.end(), std::int64_t{0});
}

}  // namespace gossamer
