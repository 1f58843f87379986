// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>

#include "gossamer/packed_weight.h"
#include "plan/kernel_table.h"

namespace gossamer::plan {

/// The layout in which a packed weight runs at a count of tokens or pixels: of a block that holds
/// one that one, of two the one that the plan named, or that which the row named by GOSSAMER_KERNEL
/// needs. What a call of a single layout pays for is one comparison.
inline PackedView planned_layout(const PackedView& weight, std::int64_t tokens) {
  const PackedHeader& header = weight.header();
  if (header.has_second == 0) return weight;
  bool is_second = header.in_second(token_bucket(tokens));
  const bool is_forced = !environment_kernel().empty();
  if (!is_second && !is_forced) return weight;
  const std::optional<PackedView> second = weight.second();
  if (!second) return weight;
  if (is_forced) {
    const std::optional<Layout> forced = layout_of(environment_kernel());
    if (forced == header.layout) is_second = false;
    if (forced == second->layout()) is_second = true;
  }
  return is_second ? *second : weight;
}

}  // namespace gossamer::plan
