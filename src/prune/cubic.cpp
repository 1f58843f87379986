// SPDX-License-Identifier: BSD-3-Clause
#include "core/fail.h"
#include "gossamer/prune.h"

namespace gossamer {

double cubic_sparsity(double initial, double final_sparsity, std::int64_t begin, std::int64_t end,
                      std::int64_t step) {
  const auto is_fraction = [](double s) { return s >= 0.0 && s <= 1.0; };
  if (!is_fraction(initial) || !is_fraction(final_sparsity)) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "cubic schedule from sparsity {} to {}; both must be from 0 to 1", initial,
                 final_sparsity);
  }
  if (begin >= end) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "cubic schedule from step {} to {}; the end must be after the begin", begin, end);
  }
  if (step <= begin) return initial;
  if (step >= end) return final_sparsity;
  // In doubles before subtracting: differences of extreme steps overflow integers.
  const double done = (static_cast<double>(step) - static_cast<double>(begin)) /
                      (static_cast<double>(end) - static_cast<double>(begin));
  const double rest = 1.0 - done;
  return final_sparsity + (initial - final_sparsity) * rest * rest * rest;
}

}  // namespace gossamer
