// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "cli/checkpoint.h"
#include "gossamer/pattern.h"

namespace gossamer::cli {

/// One of the weights that compete; they are given in the order in which masks will be asked for.
struct Competitor {
  const SafetensorsEntry* entry = nullptr;
  bool transposed = false;
};

/// Magnitude pruning with Scope::kGlobal of weights that do not fit in memory together: the exact
/// result of select_masks over all of them, ties by tensor and index included.
class GlobalSelector {
 public:
  virtual ~GlobalSelector() = default;
  /// Fills the mask of the next weight; to be called once for each competitor, in order.
  virtual void next_mask(const ConstMatrixView& values, const MatrixView& mask) = 0;
};

/// For unstructured patterns the threshold is found in passes over the file, in constant memory;
/// for blocks the scores of all blocks are held (9 bytes each). Null for patterns that compete
/// where their definition says, whatever the scope. Throws Error(kInvalidArgument) for NaNs, with
/// their place.
std::unique_ptr<GlobalSelector> make_global_selector(const SafetensorsFile& file,
                                                     std::span<const Competitor> competitors,
                                                     const Pattern& pattern);

}  // namespace gossamer::cli
