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

/// The relative error that each of the tried patterns leaves. Without statistics ‖W − Ŵ‖²/‖W‖² of
/// magnitude pruning; with them ‖(W − Ŵ)·X‖²/‖W·X‖² of Wanda by row.
std::array<double, kTriedPatterns.size()> sensitivity(const SafetensorsFile& file,
                                                      const SafetensorsEntry& entry,
                                                      bool transposed,
                                                      const std::optional<Statistics>& statistics);

}  // namespace gossamer::cli
