// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <memory>

#include "core/row_source.h"
#include "gossamer/packed_weight.h"

// Reading and checking the layouts of row pairs, of single inputs and of fours.
namespace gossamer::detail {

std::unique_ptr<PackedSource> row_pairs_source(const PackedView& packed);

/// Throws Error(kMalformedData) where the arrays are not what an encoder writes.
void validate_row_pairs(const PackedView& packed);

}  // namespace gossamer::detail
