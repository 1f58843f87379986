// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "gossamer/linear.h"
#include "plan/candidates.h"
#include "plan/decide.h"

namespace gossamer::plan {

/// Times the promising rows, interleaved with dense in one process, in rounds whose order
/// alternates; a ratio is the median over rounds, a contested one is measured again, and judged by
/// the least times where it stays contested. Inputs are random normal with a fixed seed. One
/// layer's weight is used again and again, so it is as warm in the caches as they are large, for
/// sparse and dense alike; calls under half a millisecond are preceded by an untimed one of the
/// same row, so that none pays for the bytes that another row pulled in.
///
/// Stays within options.seconds_budget, converting and generating inputs included, but for the
/// first token count and layout, which are always measured: for a weight whose single dense call
/// takes longer than the budget, a small multiple of that call. Waits for other work are not
/// charged (series.h); a verdict that they cut short says so in `disturbed` and is not to be kept.
Verdict measure_rows(const std::vector<ModelledRow>& rows, const PackedView& weight,
                     const LinearDesc& desc, const Machine& machine, const DensePeer& dense,
                     const PlanOptions& options, const std::string& forced);

}  // namespace gossamer::plan
