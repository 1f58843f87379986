// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gossamer/safetensors.h"

namespace gossamer::cli {

/// What calibration saw of the inputs of one weight (docs/formats.md, "Statistics").
struct LayerStatistics {
  std::int64_t tokens = 0;
  std::int64_t groups = 1;   ///< of a grouped convolution: weight rows in as many equal parts
  std::int64_t inputs = 0;   ///< columns of the weight's matrix
  std::int64_t segment = 0;  ///< columns that lie together: groups of N:M start anew after so many
  bool transposed = false;   ///< the file stores the weight [in, out]
  std::vector<double> norms = {};  ///< [groups, inputs]: ‖x_j‖₂ / √tokens
  std::vector<double> gram = {};  ///< [groups, inputs, inputs]: XᵀX / tokens; empty where not saved
};

/// A file of statistics; a layer's arrays are read when they are asked for.
class Statistics {
 public:
  /// Throws Error(kMalformedData) where the file is no file of statistics.
  explicit Statistics(const std::string& path);

  bool has(const std::string& weight) const;
  /// Throws Error(kMalformedData) where the arrays do not fit their description.
  LayerStatistics read(const std::string& weight) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  SafetensorsFile file_;
};

}  // namespace gossamer::cli
