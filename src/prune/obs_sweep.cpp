// SPDX-License-Identifier: BSD-3-Clause
// Blocks of columns from left to right. Inside a block every row is swept by itself; what the block
// owes to the columns right of it is one matrix product, E[out, block] · U[block, rest].
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/top_k.h"
#include "prune/product.h"
#include "prune/solve_check.h"

namespace gossamer {
namespace {

using detail::ConstRows;
using detail::fail;
using detail::Rows;

struct Sweep {
  Rows<float> weight;
  ConstRows<float> factor;
  Rows<std::uint8_t> mask;
  const Pattern* pattern = nullptr;  // null where the mask is given
  std::int64_t block = 0;
  std::int64_t segment = 0;
};

struct Block {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

double score(const Sweep& sweep, std::int64_t row, std::int64_t col) {
  const double ratio = static_cast<double>(sweep.weight[row][col]) / sweep.factor[col][col];
  return ratio * ratio;
}

bool grouped(const Sweep& sweep) {
  return sweep.pattern && sweep.pattern->kind == Pattern::Kind::kNm;
}

/// One past the last column of the group of M that `col` opens.
std::int64_t group_end(const Sweep& sweep, std::int64_t col) {
  const std::int64_t segment_end = (col / sweep.segment + 1) * sweep.segment;
  return std::min(col + sweep.pattern->m, segment_end);
}

/// The next block: about `block` columns, and whole groups.
Block next_block(const Sweep& sweep, std::int64_t begin) {
  const std::int64_t cols = sweep.weight.cols;
  if (!grouped(sweep)) return {begin, std::min(begin + sweep.block, cols)};
  std::int64_t end = begin;
  while (end < cols && (end == begin || end - begin < sweep.block)) end = group_end(sweep, end);
  return {begin, end};
}

/// The scores of some rows of a block, for exact selection over all of them.
class BlockScores final : public detail::KeySource {
 public:
  BlockScores(const Sweep& sweep, const Block& block, std::int64_t first, std::int64_t end)
      : sweep_(sweep), block_(block), first_(first), end_(end) {}

  std::int64_t count() const override { return (end_ - first_) * block_.size(); }

  void visit(const Visitor& visitor) const override {
    std::vector<double> row(static_cast<std::size_t>(block_.size()));
    for (std::int64_t r = first_; r < end_; ++r) {
      for (std::int64_t c = 0; c < block_.size(); ++c) {
        row[static_cast<std::size_t>(c)] = score(sweep_, r, block_.begin + c);
      }
      visitor(row);
    }
  }

  /// Keeps all but the `dropped` lowest.
  void select(std::int64_t dropped) const {
    detail::Threshold threshold = detail::top_k(*this, count() - dropped);
    for (std::int64_t r = first_; r < end_; ++r) {
      for (std::int64_t c = block_.begin; c < block_.end; ++c) {
        sweep_.mask[r][c] = threshold.keeps(score(sweep_, r, c)) ? 1 : 0;
      }
    }
  }

 private:
  const Sweep& sweep_;
  Block block_;
  std::int64_t first_;
  std::int64_t end_;
};

/// The mask of a block before its rows are swept, where the pattern counts over the block. Rounded
/// from the first column on, so that the counts of all blocks add up to that of the weight.
void select_block(const Sweep& sweep, const Block& block, const ParallelFor& pool) {
  const double sparsity = sweep.pattern->sparsity;
  const auto dropped = [&](std::int64_t rows) {
    return dropped_count(sparsity, rows * block.end) - dropped_count(sparsity, rows * block.begin);
  };
  const std::int64_t rows = sweep.weight.rows;
  if (sweep.pattern->kind == Pattern::Kind::kUnstructured) {
    BlockScores(sweep, block, 0, rows).select(dropped(rows));
    return;
  }
  parallel_for(pool, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      BlockScores(sweep, block, r, r + 1).select(dropped(1));
    }
  });
}

/// Keeps the N highest scores of the group that `col` opens, with the weights as they are by now.
void select_group(const Sweep& sweep, std::int64_t row, std::int64_t col) {
  const std::int64_t end = group_end(sweep, col);
  std::uint8_t* const mask = sweep.mask[row];
  std::fill(mask + col, mask + end, std::uint8_t{0});
  for (std::int64_t kept = 0; kept < std::min<std::int64_t>(sweep.pattern->n, end - col); ++kept) {
    std::int64_t best = -1;
    for (std::int64_t i = col; i < end; ++i) {
      if (mask[i] == 0 && (best < 0 || score(sweep, row, i) > score(sweep, row, best))) best = i;
    }
    mask[best] = 1;
  }
}

/// Drops the weights of a row's block one after the other; `owed` takes w/U_jj of each.
void sweep_row(const Sweep& sweep, const Block& block, std::int64_t row, float* owed) {
  float* const w = sweep.weight[row];
  const std::uint8_t* const mask = sweep.mask[row];
  std::int64_t next_group = block.begin;
  for (std::int64_t col = block.begin; col < block.end; ++col) {
    if (grouped(sweep) && col == next_group) {
      select_group(sweep, row, col);
      next_group = group_end(sweep, col);
    }
    const float* const u = sweep.factor[col];
    const float error = mask[col] != 0 ? 0.0f : w[col] / u[col];
    owed[col - block.begin] = error;
    if (mask[col] != 0) continue;
    w[col] = 0.0f;
    for (std::int64_t i = col + 1; i < block.end; ++i) w[i] -= error * u[i];
  }
}

void sweep_block(const Sweep& sweep, const Block& block, std::vector<float>& owed,
                 std::vector<float>& update, const Solver& solver) {
  const bool selects = sweep.pattern && !grouped(sweep);
  if (selects) select_block(sweep, block, solver.parallel);
  const std::int64_t rows = sweep.weight.rows;
  owed.resize(static_cast<std::size_t>(rows * block.size()));
  parallel_for(solver.parallel, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      sweep_row(sweep, block, r, owed.data() + r * block.size());
    }
  });
  const std::int64_t rest = sweep.weight.cols - block.end;
  if (rest == 0) return;
  update.resize(static_cast<std::size_t>(rows * rest));
  detail::multiply(solver, {.rows = rows,
                            .cols = rest,
                            .depth = block.size(),
                            .a = owed.data(),
                            .a_stride = block.size(),
                            .a_transposed = false,
                            .b = sweep.factor[block.begin] + block.end,
                            .b_stride = sweep.factor.stride,
                            .b_transposed = false,
                            .c = update.data()});
  parallel_for(solver.parallel, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* const w = sweep.weight[r] + block.end;
      const float* const delta = update.data() + r * rest;
      for (std::int64_t i = 0; i < rest; ++i) w[i] -= delta[i];
    }
  });
}

void check_options(const ObsOptions& options) {
  detail::check_positive("block", static_cast<double>(options.block));
  if (!options.pattern) return;
  const Pattern::Kind kind = options.pattern->kind;
  if (kind == Pattern::Kind::kBlock || kind == Pattern::Kind::kVnm) {
    fail(ErrorCode::kInvalidArgument,
         "the sweep cannot select pattern '{}': unstructured, fanin and N:M are accepted; select "
         "the mask first (select_masks) and pass no pattern",
         options.pattern->to_string());
  }
}

/// What would otherwise spread as NaN and infinity over the weight.
void check_numbers(const Sweep& sweep) {
  for (std::int64_t c = 0; c < sweep.factor.cols; ++c) {
    const float pivot = sweep.factor[c][c];
    if (std::isfinite(pivot) && pivot > 0) continue;
    fail(ErrorCode::kInvalidArgument,
         "factor: element {} of the diagonal is {}, expected a positive number; damp the Gram "
         "matrix more before it is factored",
         c, pivot);
  }
  for (std::int64_t r = 0; r < sweep.weight.rows; ++r) {
    for (std::int64_t c = 0; c < sweep.weight.cols; ++c) {
      if (std::isfinite(sweep.weight[r][c])) continue;
      fail(ErrorCode::kInvalidArgument, "weight: row {}, column {} is {}, expected a finite number",
           r, c, sweep.weight[r][c]);
    }
  }
}

}  // namespace

void obs_sweep(const MatrixView& weight, const ConstMatrixView& factor, const MatrixView& mask,
               const ObsOptions& options, const Solver& solver) {
  check_options(options);
  Sweep sweep;
  sweep.weight = detail::checked_rows<float>(weight, "weight", -1, -1);
  sweep.factor = detail::checked_rows<const float>(factor, "factor", weight.cols, weight.cols);
  sweep.mask = detail::checked_rows<std::uint8_t>(mask, "mask", weight.rows, weight.cols);
  sweep.pattern = options.pattern ? &*options.pattern : nullptr;
  sweep.block = options.block;
  sweep.segment = detail::checked_segment(options.segment, weight.cols);
  check_numbers(sweep);
  std::vector<float> owed;
  std::vector<float> update;
  for (Block block; block.end < weight.cols;) {
    block = next_block(sweep, block.end);
    sweep_block(sweep, block, owed, update, solver);
  }
}

}  // namespace gossamer
