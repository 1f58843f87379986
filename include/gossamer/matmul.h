// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer {

/// One matrix product C = A·B of float32 matrices, row-major. C is contiguous and overwritten.
struct MatMulArgs {
  std::int64_t rows = 0;   ///< of C and of A
  std::int64_t cols = 0;   ///< of C and of B
  std::int64_t depth = 0;  ///< columns of A, rows of B
  const float* a = nullptr;
  std::int64_t a_stride = 0;  ///< elements between the rows of A as it lies in memory
  bool a_transposed = false;  ///< A lies in memory as [depth, rows]
  const float* b = nullptr;
  std::int64_t b_stride = 0;
  bool b_transposed = false;  ///< B lies in memory as [cols, depth]
  float* c = nullptr;
};

/// How a solver multiplies matrices: the caller lends its BLAS, as it lends threads. Behind the
/// torch door this is torch's own. Default: blocked loops of the core, on the caller's threads.
struct MatMul {
  using Run = void (*)(void* self, const MatMulArgs& args);
  Run run = nullptr;
  void* self = nullptr;
};

}  // namespace gossamer
