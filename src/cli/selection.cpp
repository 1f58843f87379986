// SPDX-License-Identifier: BSD-3-Clause
#include "cli/selection.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>

#include "cli/output.h"
#include "gossamer/error.h"
#include "gossamer/packed_io.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

// Weights that are looked up, not multiplied, and the heads that every recipe leaves dense.
constexpr std::array kEmbeddings{"*embed*weight", "*wte.weight", "*wpe.weight", "*lm_head.weight"};

bool matches(const std::string& glob, const std::string& name) {
  return ::fnmatch(glob.c_str(), name.c_str(), 0) == 0;
}

bool matches_any(const std::vector<std::string>& globs, const std::string& name) {
  return std::any_of(globs.begin(), globs.end(), [&](const auto& g) { return matches(g, name); });
}

}  // namespace

void SelectionOptions::add_to(CLI::App& command) {
  command
      .add_option("--include", include,
                  "Only tensors whose name matches GLOB (repeatable; default: names that end in "
                  "'weight', embeddings and lm_head aside)")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command
      .add_option("--exclude", exclude, "Leave out tensors whose name matches GLOB (repeatable)")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command
      .add_option("--transposed", transposed,
                  "Tensors whose name matches GLOB are stored [in, out], as GPT-2's Conv1D does "
                  "(repeatable)")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command.add_option("--min-size", min_size, "Leave out tensors with fewer elements")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
}

std::string SelectionOptions::why_not(const SafetensorsEntry& entry) const {
  const auto dtype = dtype_of_word(entry.dtype);
  if (!dtype || !is_weight_dtype(*dtype)) return "no weight's dtype";
  if (*dtype == DType::kInt8 && include.empty()) return "int8; name it with --include";
  if (entry.shape.size() != 2 && entry.shape.size() != 4) {
    return fmt::format("its rank is {}; weights have 2 (linear) or 4 (convolution)",
                       entry.shape.size());
  }
  if (matches_any(exclude, entry.name)) return "left out by --exclude";
  if (!include.empty()) {
    if (!matches_any(include, entry.name)) return "not named by --include";
  } else if (!entry.name.ends_with("weight")) {
    return "its name does not end in 'weight'";
  } else if (std::any_of(kEmbeddings.begin(), kEmbeddings.end(),
                         [&](const char* glob) { return matches(glob, entry.name); })) {
    return "an embedding or head by its name; name it with --include";
  }
  std::int64_t elements = 1;
  for (const std::int64_t size : entry.shape) elements *= size;
  if (elements == 0) return "empty";
  if (elements < min_size)
    return fmt::format("{} elements, under --min-size {}", elements, min_size);
  return {};
}

bool SelectionOptions::is_transposed(std::string_view name) const {
  return matches_any(transposed, std::string(name));
}

void SelectionOptions::check_globs(const SafetensorsFile& file) const {
  const auto packed = packed_names(file);
  for (const auto* globs : {&include, &exclude, &transposed}) {
    for (const std::string& glob : *globs) {
      const auto& entries = file.entries();
      const bool found = std::any_of(entries.begin(), entries.end(),
                                     [&](const auto& e) { return matches(glob, e.name); }) ||
                         std::any_of(packed.begin(), packed.end(),
                                     [&](const auto& name) { return matches(glob, name); });
      if (found) continue;
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("'{}' matches no tensor; `gossamer inspect` lists the names",
                              io::escaped(glob)));
    }
  }
}

}  // namespace gossamer::cli
