// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "gossamer/conv.h"

namespace gossamer::cpu {

/// The convolutions over K-blocked CSR.
std::vector<Conv2dKernel> conv2d_kcsr_rows();
/// Those of int8 weights in the bitmask format.
std::vector<Conv2dKernel> conv2d_int8_rows();

}  // namespace gossamer::cpu
