// SPDX-License-Identifier: BSD-3-Clause
// What a convolution's pattern means for its matrix [OC, KH·KW·IC], taps side by side.
#pragma once

#include <cstdint>
#include <string>

#include "core/fail.h"
#include "gossamer/mask.h"
#include "gossamer/pattern.h"
#include "gossamer/tensor_view.h"

namespace gossamer::detail {

/// Groups of N:M and V:N:M run along the input channels of one tap; everything else speaks of the
/// matrix.
inline bool groups_inputs(const Pattern& pattern) {
  return pattern.kind == Pattern::Kind::kNm || pattern.kind == Pattern::Kind::kVnm;
}

/// Whether groups that lie side by side in the matrix would reach from one tap into the next.
inline bool groups_cross_taps(const Pattern& pattern, std::int64_t taps, std::int64_t channels) {
  return groups_inputs(pattern) && taps > 1 && channels % pattern.m != 0;
}

/// The matrix [OC, taps·IC] as a batch of `taps` matrices [OC, IC].
inline ConstMatrixView by_tap(const ConstMatrixView& matrix, std::int64_t taps) {
  ConstMatrixView view = matrix;
  view.cols = matrix.cols / taps;
  view.batch = taps;
  view.batch_stride = view.cols * matrix.col_stride;
  return view;
}

inline Pattern exact_unstructured(const ConstMatrixView& marks) {
  const double total = static_cast<double>(marks.rows) * static_cast<double>(marks.cols);
  return Pattern::unstructured(1.0 - static_cast<double>(count_nonzeros(marks)) / total);
}

/// The tightest pattern that a convolution can be packed with. `marks`: its matrix, or a bool mask
/// of the kept positions.
inline Pattern infer_packed_pattern(const ConstMatrixView& marks, std::int64_t taps) {
  const Pattern found = infer_pattern(marks);
  return groups_cross_taps(found, taps, marks.cols / taps) ? exact_unstructured(marks) : found;
}

/// What a convolution that was asked to be packed as `wanted` is packed as: `wanted`, or, where its
/// groups would cross taps, `unstructured`, once every tap has been found to satisfy it. Throws
/// Error(kPatternViolation) naming tap, row and columns.
inline Pattern requested_packed_pattern(const ConstMatrixView& marks, std::int64_t taps,
                                        const Pattern& wanted, const std::string& name) {
  if (!groups_cross_taps(wanted, taps, marks.cols / taps)) return wanted;
  if (const auto violation = find_violation(by_tap(marks, taps), wanted)) {
    fail(ErrorCode::kPatternViolation,
         "weight '{}' {} (a batch is a tap of the kernel, a column a channel); prune it first "
         "(gossamer.Magnitude(\"{}\")) or pass pattern=\"unstructured\"",
         name, violation->message, wanted.to_string());
  }
  return exact_unstructured(marks);
}

}  // namespace gossamer::detail
