// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/sm90/rows.h"
#include "cuda/sm90/sm90_gemm_sp24_rows.cuh"

namespace gossamer::cuda::sm90 {

void add_gemm_i8_rows(std::vector<LinearSp24Kernel>& rows) {
  using T = signed char;
  constexpr DType kType = DType::kInt8;
  // Tiles of 64 rows a warpgroup, tokens, buffers of results; X by the copy engine.
  rows.push_back(GemmInstance<T, GemmShape<T, 2, 192, 4>>::row("sm90_gemm_sp24_i8_256x192", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 256, 6>>::row("sm90_gemm_sp24_i8_128x256", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 192, 6>>::row("sm90_gemm_sp24_i8_128x192", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 2, 128, 6>>::row("sm90_gemm_sp24_i8_256x128", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 128, 8>>::row("sm90_gemm_sp24_i8_128x128", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 96, 6>>::row("sm90_gemm_sp24_i8_128x96", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 64, 4>>::row("sm90_gemm_sp24_i8_128x64", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 32, 2>>::row("sm90_gemm_sp24_i8_128x32", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 128, 8, false>>::row(
      "sm90_gemm_sp24_i8_128x128_unaligned", kType));
}

}  // namespace gossamer::cuda::sm90
