// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdlib>
#include <string_view>

// Code that is complete and tested as far as it can be without its hardware, but has not run on it.
// Nobody gets it who did not ask: GOSSAMER_EXPERIMENTAL is a list of names, separated by commas.
namespace gossamer::detail {

/// Whether `name` is in `list`.
constexpr bool is_listed(std::string_view list, std::string_view name) {
  while (true) {
    const std::size_t comma = list.find(',');
    if (list.substr(0, comma) == name) return true;
    if (comma == std::string_view::npos) return false;
    list.remove_prefix(comma + 1);
  }
}

static_assert(is_listed("a,sm80", "sm80") && is_listed("sm80", "sm80"));
static_assert(!is_listed("", "sm80") && !is_listed("sm80x,asm80", "sm80"));

/// Whether the environment asks for the experiment of that name.
inline bool is_experiment_enabled(std::string_view name) {
  const char* list = std::getenv("GOSSAMER_EXPERIMENTAL");
  return list != nullptr && is_listed(list, name);
}

}  // namespace gossamer::detail
