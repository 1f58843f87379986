// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/dtype.h"

namespace gossamer::cuda {

/// A matrix whose rows are quantized one by one. Pointers are device memory, strides count
/// elements, columns are contiguous.
struct QuantizeArgs {
  const void* x = nullptr;           ///< [rows, columns], any alignment
  DType x_dtype = DType::kBFloat16;  ///< float16 or bfloat16
  std::int64_t x_stride = 0;
  void* q = nullptr;             ///< [rows, columns], rows aligned to 16 bytes
  DType q_dtype = DType::kInt8;  ///< int8 or float8_e4m3fn
  std::int64_t q_stride = 0;     ///< a multiple of 16
  float* scale = nullptr;        ///< [rows]
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

/// scale = max |x| of the row / 127 (int8) or / 448 (float8), 1 where all are zero; q is x / scale
/// rounded to nearest, ties to even. Enqueues one kernel.
void quantize_rows(const QuantizeArgs& args, void* stream);

}  // namespace gossamer::cuda
