// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "gossamer/conv.h"

namespace gossamer::cpu {

/// The convolutions over K-blocked CSR, for the kernel table.
std::vector<Conv2dKernel> conv2d_kcsr_rows();

}  // namespace gossamer::cpu
