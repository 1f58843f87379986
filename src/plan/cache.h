// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "gossamer/linear.h"

// Verdicts kept between processes: one JSON file, an object {"version": …, "plans": {key: plan}}.
// It is only ever a shortcut: what cannot be read is measured, what cannot be written is measured
// again next time, and neither is an error.
namespace gossamer::plan {

/// Whether a plan's weight is held in a layout.
inline bool holds(const Plan& plan, Layout layout) {
  return layout == plan.layout || layout == plan.second;
}

/// The file that PlanOptions.cache means; empty where nothing is to be kept. `option` may be a
/// file, an existing directory, "off", or "" for $GOSSAMER_CACHE (a directory or "off"),
/// $XDG_CACHE_HOME/gossamer or ~/.cache/gossamer.
std::filesystem::path cache_file(const std::string& option);

/// Everything that a measured verdict depends on, as one line of text. Densities that agree in two
/// significant digits share a verdict: 0.102 and 0.0988 do, 0.010 and 0.015 do not.
std::string cache_key(const LinearDesc& desc, const Machine& machine, const DensePeer& dense,
                      const PlanOptions& options, const std::string& forced);

/// The plan of that key; nothing where there is none, or where it names kernels that this process
/// cannot run.
std::optional<Plan> read_cached_plan(const std::filesystem::path& file, const std::string& key,
                                     const LinearDesc& desc, const Machine& machine);

/// The same with the question whether this process can run the plan answered by `runs_here`.
std::optional<Plan> read_cached_plan(const std::filesystem::path& file, const std::string& key,
                                     const std::function<bool(const Plan&)>& runs_here);

/// Adds the plan by writing a new file beside the old one and renaming it, so that readers see the
/// old or the new file whole. Writers wait for each other: none loses an entry.
void write_cached_plan(const std::filesystem::path& file, const std::string& key, const Plan& plan);

}  // namespace gossamer::plan
