// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/checkpoint.h"
#include "cli/prune_pattern.h"
#include "cli/statistics.h"
#include "gossamer/mask.h"
#include "gossamer/pattern.h"

namespace gossamer::cli {

/// Options of methods that prune from saved statistics.
struct CalibratedOptions {
  std::string method = "magnitude";
  std::string statistics;
  double damping = 0.01;
  double power = 0.5;
  std::int64_t block = 128;

  void add_to(CLI::App& command);
  bool asked() const { return method != "magnitude"; }
  /// Throws Error(kInvalidArgument) for options that do not go together.
  void check() const;
};

/// One weight as it comes out.
struct PrunedWeight {
  std::vector<std::byte> mask;    ///< bool, in the order of the file
  std::vector<std::byte> values;  ///< elements in the order of the file; empty where none changed
  std::optional<double> error;    ///< ‖(W − Ŵ)·X‖² / ‖W·X‖², where the Gram matrix is known
  double damping = 0.0;           ///< of SparseGPT, as it was in the end
  std::string remark = {};        ///< what the result is to be doubted for; mostly nothing
};

/// Prunes a weight by its statistics: what gossamer.Wanda, RIA and SparseGPT do with the target
/// "dense-inputs". `weight` must have been loaded without a pattern. Throws Error(kInvalidArgument)
/// where shapes do not fit or the Gram matrix that is needed is not there.
PrunedWeight prune_calibrated(const LoadedWeight& weight, const std::string& name,
                              const LayerStatistics& statistics, const PrunePattern& pattern,
                              Scope scope, const CalibratedOptions& options);

/// ‖(W − Ŵ)·X‖² / ‖W·X‖² where `mask` drops weights and changes none; with norms alone inputs count
/// as uncorrelated. `dense` [groups·rows, inputs] and `mask` (bool) are row-major.
double masked_error(std::span<const float> dense, std::span<const std::uint8_t> mask,
                    const LayerStatistics& statistics);

/// Wanda's mask, |w|·‖x_j‖, row-major.
std::vector<std::uint8_t> wanda_mask(std::span<const float> dense,
                                     const LayerStatistics& statistics, const PrunePattern& pattern,
                                     Scope scope);

/// The weight's matrix, row-major float32. Throws where the statistics are of another shape.
std::vector<float> dense_matrix(const LoadedWeight& weight, const std::string& name,
                                const LayerStatistics& statistics);

}  // namespace gossamer::cli
