// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/linear.h"

namespace gossamer::plan {

/// Predicted seconds of a good dense product of the same shape (roofline: Williams, Waterman &
/// Patterson 2009, doi:10.1145/1498765.1498785): a fixed cost of the call, plus the longer of the
/// arithmetic at an efficient fraction of the vector units' peak and one pass over the operands at
/// the bandwidth of the smallest memory level that holds the weight. Used where the caller has no
/// dense peer, and to scale measured times to other token counts.
double modelled_dense_seconds(const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                              int threads);

}  // namespace gossamer::plan
