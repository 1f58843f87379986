// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "gossamer/packed_weight.h"

namespace gossamer::detail {

/// Checks every offset, index and padding byte of the layout that the view describes; what lies
/// behind it, a second layout, is not looked at. Throws Error(kMalformedData).
void validate_layout(const PackedView& packed);

}  // namespace gossamer::detail
