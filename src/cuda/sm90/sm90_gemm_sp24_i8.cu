// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/sm90/rows.h"
#include "cuda/sm90/sm90_gemm_sp24_rows.cuh"

namespace gossamer::cuda::sm90 {

void add_gemm_i8_rows(std::vector<LinearSp24Kernel>& rows) {
  using T = signed char;
  constexpr DType kType = DType::kInt8;
  // Tiles of 64 rows a warpgroup, tokens, stages, buffers of results, blocks that share X, X by the
  // copy engine.
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 256, 4, 6, 2, true>>::row(
      "sm90_gemm_sp24_i8_128x256", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 192, 5, 6, 2, true>>::row(
      "sm90_gemm_sp24_i8_128x192", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 128, 7, 8, 2, true>>::row(
      "sm90_gemm_sp24_i8_128x128", kType));
  rows.push_back(
      GemmInstance<T, GemmShape<T, 1, 64, 10, 4, 2, true>>::row("sm90_gemm_sp24_i8_128x64", kType));
  rows.push_back(
      GemmInstance<T, GemmShape<T, 1, 32, 14, 2, 2, true>>::row("sm90_gemm_sp24_i8_128x32", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 128, 4, 8, 1, false>>::row(
      "sm90_gemm_sp24_i8_128x128_unaligned", kType));
  rows.push_back(GemmInstance<T, GemmShape<T, 1, 256, 4, 6, 2, true, false, true>>::row(
      "sm90_gemm_sp24_i8_128x256_mapped", kType));
}

}  // namespace gossamer::cuda::sm90
