// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "gossamer/parallel.h"

namespace gossamer::cli {

/// All cores of the machine, by threads that live as long as one call.
ParallelFor machine_threads();

}  // namespace gossamer::cli
