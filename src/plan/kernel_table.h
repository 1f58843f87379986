// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gossamer/conv.h"
#include "gossamer/linear.h"

namespace gossamer::plan {

/// All rows at one moment. Immutable once published and never freed, so that spans, row pointers
/// and snapshots stay valid for the life of the process, whatever is registered later.
struct TableSnapshot {
  std::vector<LinearKernel> rows;  ///< by name
  std::vector<std::pair<std::uint32_t, const LinearKernel*>> by_hash;
  std::uint32_t version = 0;  ///< of all names together: what a cached plan depends on

  const LinearKernel* find(std::uint32_t hash) const {
    const auto it = std::lower_bound(by_hash.begin(), by_hash.end(), hash,
                                     [](const auto& a, std::uint32_t b) { return a.first < b; });
    return it != by_hash.end() && it->first == hash ? it->second : nullptr;
  }
};

/// The current rows; the first call registers the CPU kernels.
const TableSnapshot& table_snapshot();

/// What GOSSAMER_KERNEL held when it was first asked for; empty where unset.
const std::string& environment_kernel();

/// The row of that name; throws Error(kInvalidArgument) with the nearest names where there is none.
/// `source` says who asked: "GOSSAMER_KERNEL", "kernel".
const LinearKernel& require_kernel(std::string_view name, std::string_view source);

/// The layout of the linear layer's or the convolution's row of that name; nothing where there is
/// none.
std::optional<Layout> layout_of(std::string_view name);

/// The linear row that GOSSAMER_KERNEL names; null where it is unset, "dense", or a convolution's.
/// Throws as require_kernel does.
const LinearKernel* environment_linear_row();

/// The convolution's row that GOSSAMER_KERNEL names; null where it is unset, "dense", or a linear
/// layer's. Throws as require_kernel does.
const Conv2dKernel* environment_conv2d_row();

}  // namespace gossamer::plan
