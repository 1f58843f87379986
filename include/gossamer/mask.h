// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "gossamer/pattern.h"
#include "gossamer/tensor_view.h"

namespace gossamer {

/// Where scores compete: every row for itself, the whole tensor, or all tensors of a model.
/// `N:M`, `V:N:M` and fan-in patterns compete where their definition says, whatever the scope.
enum class Scope : std::uint8_t { kRow, kTensor, kGlobal };

/// "row", "tensor" or "global"; throws Error(kInvalidArgument) for anything else.
Scope parse_scope(std::string_view text);

/// One weight of a selection: its scores (float32 or float64, [batch,] out × in, higher is kept
/// first) and the mask to fill (bool, same shape).
struct Selection {
  ConstMatrixView scores;
  MatrixView mask;
};

/// Fills the masks of all selections so that each satisfies the pattern with exact counts.
/// Among equal scores the lower index is kept (row-major; with Scope::kGlobal the earlier tensor).
/// A block's score is the mean of its elements' scores. Deterministic.
/// Throws Error(kInvalidArgument) where shapes or dtypes differ or a score is NaN (with its place).
void select_masks(std::span<const Selection> selections, const Pattern& pattern, Scope scope);

/// select_masks on |values| of one weight in any float dtype or int8.
void magnitude_mask(const ConstMatrixView& values, const Pattern& pattern, Scope scope,
                    const MatrixView& mask);

/// Where a weight or mask breaks a pattern.
struct Violation {
  std::int64_t batch = 0;
  std::int64_t row = 0;
  std::int64_t col_begin = 0;
  std::int64_t col_end = 0;  ///< one past the last column
  std::string message;       ///< "row 17, columns 40–43: 3 non-zeros, 2:4 allows 2"
};

/// The first place (row-major) where the non-zeros of `values`, or the kept positions of a bool
/// view, break the pattern; nothing where it holds. −0.0 is zero; NaN is non-zero.
/// The fractions of `unstructured`, `block` and `fanin` are lower bounds on zeros: a weight with
/// more zeros than asked satisfies them, and so does one whose rows were rounded each for itself.
/// `fanin` allows rows with fewer kept inputs than the bound.
std::optional<Violation> find_violation(const ConstMatrixView& values, const Pattern& pattern);

/// The tightest pattern that the zeros of a weight satisfy, tried in this order: N:M for
/// 1:4, 2:4, 1:8, 2:8, 4:8, 1:16, 2:16, 4:16, 8:16 (the sparsest that holds and whose N slots are
/// at least 80 % used, so that padding never makes the weight denser than it is), block for the
/// largest of 64x64, 32x32, 16x16, 16x1, 4x1, 1x4 whose blocks are at least 25 % zero and hold
/// together (a dropped block is all zero, a kept block at least 90 % non-zero on average), fan-in
/// (equal non-zeros in all rows, between 1 and in - 1), unstructured with the exact fraction of
/// zeros.
Pattern infer_pattern(const ConstMatrixView& values);

/// How many elements are not zero (−0.0 is zero, NaN is not).
std::int64_t count_nonzeros(const ConstMatrixView& values);

}  // namespace gossamer
