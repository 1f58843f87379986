// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "cuda/linear_sp24.h"

namespace gossamer::door {

/// Whether GOSSAMER_KERNEL names a row of the GPU's table: it runs, also where a plan says dense.
bool is_row_forced();

/// The row that multiplies: the one that GOSSAMER_KERNEL names, in the cut of GOSSAMER_CUT, which
/// is written into `args`; otherwise the tuned one or the cost model's. Throws Error(kUnsupported)
/// where none can, Error(kInvalidArgument) for a GOSSAMER_CUT that is none, or that has no named
/// row to cut.
const cuda::LinearSp24Kernel& choose_row(cuda::LinearSp24Args& args,
                                         const cuda::DeviceInfo& device);

}  // namespace gossamer::door
