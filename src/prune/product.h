// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "gossamer/solve.h"

namespace gossamer::detail {

/// C = A·B with what the solver lends, else with blocked loops on its threads.
void multiply(const Solver& solver, const MatMulArgs& args);

}  // namespace gossamer::detail
