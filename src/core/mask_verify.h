// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <optional>

#include "core/row_source.h"
#include "gossamer/mask.h"

namespace gossamer::detail {

/// gossamer::find_violation over whatever a source keeps.
std::optional<Violation> find_violation(const RowSource& source, const Pattern& pattern);

/// How many of rows × cols positions a fraction of zeros lets stay (`unstructured`). Dropping row
/// by row and dropping over the whole round differently; both are what was asked.
std::int64_t most_kept(const Pattern& pattern, std::int64_t rows, std::int64_t cols);

/// How many positions a source keeps.
std::int64_t count_kept(const RowSource& source);

}  // namespace gossamer::detail
