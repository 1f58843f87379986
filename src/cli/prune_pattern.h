// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>
#include <string_view>

#include "gossamer/mask.h"
#include "gossamer/pattern.h"

namespace gossamer::cli {

/// What `prune` takes: the grammar of packed weights, and `transposable:N:M`, N:M along inputs and
/// outputs at once, which is packed and run as N:M.
struct PrunePattern {
  Pattern pattern;
  bool transposable = false;

  PrunePattern(const Pattern& own) : pattern(own) {}  // NOLINT: every pattern is one of these
  /// Throws Error(kInvalidArgument) that says what would do.
  static PrunePattern parse(std::string_view text);
  std::string to_string() const;

  /// Whether groups of neighbouring inputs compete in themselves.
  bool groups_inputs() const;
  /// Selects what is kept of scores, float32 or float64.
  void select(const ConstMatrixView& scores, Scope scope, const MatrixView& mask) const;
  /// Selects by |w| of a weight of any float dtype.
  void select_by_magnitude(const ConstMatrixView& weight, Scope scope,
                           const MatrixView& mask) const;
};

}  // namespace gossamer::cli
