// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <optional>

#include "core/row_source.h"
#include "gossamer/mask.h"

namespace gossamer::detail {

/// gossamer::find_violation over whatever a source keeps.
std::optional<Violation> find_violation(const RowSource& source, const Pattern& pattern);

/// How many positions a source keeps.
std::int64_t count_kept(const RowSource& source);

}  // namespace gossamer::detail
