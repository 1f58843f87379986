// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "cuda/linear_sp24.h"

namespace gossamer::cuda::sm90 {

/// Rows of the kernel table, by file.
void add_decode_rows(std::vector<LinearSp24Kernel>& rows);
void add_gemm_bf16_rows(std::vector<LinearSp24Kernel>& rows);
void add_gemm_f16_rows(std::vector<LinearSp24Kernel>& rows);
void add_gemm_f8_rows(std::vector<LinearSp24Kernel>& rows);
void add_gemm_i8_rows(std::vector<LinearSp24Kernel>& rows);

}  // namespace gossamer::cuda::sm90
