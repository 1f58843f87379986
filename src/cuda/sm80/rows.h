// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "cuda/linear_sp24.h"

namespace gossamer::cuda::sm80 {

/// Rows of the kernel table.
void add_mma_rows(std::vector<LinearSp24Kernel>& rows);

}  // namespace gossamer::cuda::sm80
