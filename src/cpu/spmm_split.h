// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"

// How a K-blocked call is cut among threads: a grid of rows × panels of tokens, one part a thread.
// Every part reads and transposes its panels of X, so many parts of rows repeat that work; narrow
// panels can be spread over more threads, but read the index more often.
namespace gossamer::cpu {

/// Cycles by which a call is cut: of a kept value whatever the panel's width, and for each vector
/// of the panel; of an element of X on its way to a tile; of a position of the dense weight, to
/// index it.
struct SplitCost {
  double per_value = 1.1;
  double per_vector = 0.55;
  double per_element = 1.0;
  double per_position = 0.0;
};

/// What the cut depends on. `lanes`: tokens of a vector; `widest`: vectors of the widest panel.
struct SplitShape {
  std::int64_t tokens = 1;
  std::int64_t in = 1;
  std::int64_t out = 1;
  std::int64_t kept = 0;
  std::int64_t lanes = 1;
  int widest = 1;
  std::int64_t threads = 1;
  std::int64_t row_panels = 0;  ///< where rows can only be cut between panels; 0: anywhere
};

/// token_parts · row_parts parts, never more than threads.
struct SpmmSplit {
  std::int64_t token_parts = 1;
  std::int64_t row_parts = 1;
  int vectors = 0;  ///< of the widest panel; 0: tokens one by one
};

/// The first of `panels` panels that part `part` of `parts` takes; of the next part, where it ends.
inline std::int64_t first_panel(std::int64_t panels, std::int64_t parts, std::int64_t part) {
  return panels * part / parts;
}

/// Cycles of the part that takes longest.
inline double split_cycles(const SplitShape& shape, const SplitCost& cost, const SpmmSplit& split) {
  const std::int64_t lanes = split.vectors * shape.lanes;
  const std::int64_t panels = detail::ceil_div(shape.tokens, lanes);
  const auto own = static_cast<double>(detail::ceil_div(panels, split.token_parts));
  const double tile = static_cast<double>(shape.in) * static_cast<double>(lanes);
  const double rows =
      shape.row_panels == 0
          ? 1.0 / static_cast<double>(split.row_parts)
          : static_cast<double>(detail::ceil_div(shape.row_panels, split.row_parts)) /
                static_cast<double>(shape.row_panels);
  const double product = static_cast<double>(shape.kept) * rows * own *
                         (cost.per_value + cost.per_vector * split.vectors);
  const double positions = static_cast<double>(shape.in * shape.out) * rows;
  return product + own * tile * cost.per_element + positions * cost.per_position;
}

/// The cut whose slowest part ends first.
inline SpmmSplit best_split(const SplitShape& shape, const SplitCost& cost) {
  SpmmSplit best;
  double least = std::numeric_limits<double>::infinity();
  const auto offer = [&](const SpmmSplit& split) {
    const double cycles = split_cycles(shape, cost, split);
    if (cycles >= least) return;
    least = cycles;
    best = split;
  };
  for (int w = 0; w < kPanelWidths && kPanelVectors[w] <= shape.widest; ++w) {
    const std::int64_t panels = detail::ceil_div(shape.tokens, kPanelVectors[w] * shape.lanes);
    std::int64_t own_before = 0;
    for (std::int64_t parts = 1; parts <= std::min(shape.threads, panels); ++parts) {
      // More parts of tokens whose longest is no shorter only take threads from the rows.
      const std::int64_t own = detail::ceil_div(panels, parts);
      if (own == own_before) continue;
      own_before = own;
      offer({parts, shape.threads / parts, kPanelVectors[w]});
    }
  }
  return best;
}

}  // namespace gossamer::cpu
