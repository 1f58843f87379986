// SPDX-License-Identifier: BSD-3-Clause
#include "cli/prune_pattern.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "cli/threads.h"
#include "core/half.h"
#include "gossamer/error.h"
#include "gossamer/solve.h"

namespace gossamer::cli {
namespace {

constexpr std::string_view kTransposable = "transposable:";
constexpr int kMostTransposable = 32;

}  // namespace

PrunePattern PrunePattern::parse(std::string_view text) {
  if (!text.starts_with(kTransposable)) return Pattern::parse(text);
  PrunePattern found = Pattern::parse(text.substr(kTransposable.size()));
  const Pattern& own = found.pattern;
  if (own.kind != Pattern::Kind::kNm || own.m < 2 || own.m > kMostTransposable) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("pattern 'transposable:{}': transposable:N:M with M one of 2, 4, 8, 16 "
                            "and 32 is accepted, for example transposable:2:4",
                            own.to_string()));
  }
  found.transposable = true;
  return found;
}

std::string PrunePattern::to_string() const {
  return transposable ? std::string(kTransposable) + pattern.to_string() : pattern.to_string();
}

bool PrunePattern::groups_inputs() const {
  return pattern.kind == Pattern::Kind::kNm || pattern.kind == Pattern::Kind::kVnm;
}

void PrunePattern::select(const ConstMatrixView& scores, Scope scope,
                          const MatrixView& mask) const {
  if (transposable) {
    transposable_mask(scores, pattern.n, pattern.m, mask, machine_threads());
    return;
  }
  const Selection selection{scores, mask};
  select_masks({&selection, 1}, pattern, scope);
}

void PrunePattern::select_by_magnitude(const ConstMatrixView& weight, Scope scope,
                                       const MatrixView& mask) const {
  if (!transposable) {
    magnitude_mask(weight, pattern, scope, mask);
    return;
  }
  const std::int64_t rows = weight.batch * weight.rows;
  std::vector<float> scores(static_cast<std::size_t>(rows * weight.cols));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t at =
        row / weight.rows * weight.batch_stride + row % weight.rows * weight.row_stride;
    detail::load_row(weight.dtype, weight.data + at * dtype_bytes(weight.dtype), weight.cols,
                     weight.col_stride, scores.data() + row * weight.cols);
  }
  for (float& score : scores) score = std::fabs(score);
  select(contiguous_view(static_cast<const void*>(scores.data()), DType::kFloat32, weight.rows,
                         weight.cols, weight.batch),
         scope, mask);
}

}  // namespace gossamer::cli
