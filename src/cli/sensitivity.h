// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <optional>
#include <string>

#include "cli/checkpoint.h"
#include "cli/statistics.h"

namespace gossamer::cli {

/// What is tried on every weight.
inline constexpr std::array kTriedPatterns{"2:4",
                                           "unstructured:0.5",
                                           "unstructured:0.6",
                                           "unstructured:0.7",
                                           "unstructured:0.8",
                                           "unstructured:0.9"};

/// The relative error that each of the tried patterns leaves of one weight. Errors of different
/// `over` are not to be compared.
struct Tried {
  std::array<double, kTriedPatterns.size()> errors{};
  const char* by = "magnitude";  ///< or "wanda", by row
  /// What the error is of: "weight", ‖W − Ŵ‖²/‖W‖²; "gram", ‖(W − Ŵ)·X‖²/‖W·X‖²; "norms", the same
  /// as if inputs were uncorrelated, where the statistics have their norms alone.
  const char* over = "weight";
};

/// Without statistics of the weight by magnitude, with them by Wanda.
Tried sensitivity(const SafetensorsFile& file, const SafetensorsEntry& entry, bool transposed,
                  const std::optional<Statistics>& statistics);

}  // namespace gossamer::cli
