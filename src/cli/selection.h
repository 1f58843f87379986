// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/safetensors.h"

namespace gossamer::cli {

/// Which tensors of a file a subcommand works on.
///
/// Without --include: float tensors of two dimensions (linear) or four (convolution) whose name
/// ends in "weight", embeddings and output heads aside (they are told by their names). With
/// --include: every float tensor of two or four dimensions whose name matches.
struct SelectionOptions {
  std::vector<std::string> include;
  std::vector<std::string> exclude;
  std::vector<std::string> transposed;
  std::int64_t min_size = 0;

  void add_to(CLI::App& command);

  /// A sentence why a tensor is left alone; empty where it is selected.
  std::string why_not(const SafetensorsEntry& entry) const;

  /// Whether a weight is stored [in, out].
  bool is_transposed(std::string_view name) const;

  /// Throws Error(kInvalidArgument) for a glob that matches no tensor of the file: a mistyped one
  /// must not pass for a finished job.
  void check_globs(const SafetensorsFile& file) const;
};

}  // namespace gossamer::cli
