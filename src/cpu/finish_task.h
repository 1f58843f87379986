// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/activation.h"

namespace gossamer::cpu {

/// y[t][row] = act(sums[t][row] + bias[row] + residual[t][row]), all but the sums in the element
/// type of the function. Plain data: instruction-set folders include it.
struct FinishTask {
  const float* sums;
  std::int64_t sums_stride;
  std::int64_t tokens;
  std::int64_t rows;
  const void* bias;      ///< of the first row, or null
  const void* residual;  ///< of the first row and token, or null
  std::int64_t residual_stride;
  void* y;
  std::int64_t y_stride;
  Activation activation;
  /// Above 0, of float32 functions: y is int8, this many times what it would be, to nearest, at
  /// most 127 either way, 0 for NaN.
  float y_inverse = 0.0f;
};

/// Sums of a quantized call, 32-bit integers where floats will be, become floats: sums[t][row] =
/// (sums[t][row] - corrections[row]) · x_scale[t] · weight_scale[row].
struct DequantizeTask {
  float* sums;
  std::int64_t sums_stride;
  std::int64_t tokens;
  std::int64_t rows;
  const std::int32_t* corrections;  ///< or null: 0
  const float* x_scale;
  const float* weight_scale;  ///< or null: 1
};

}  // namespace gossamer::cpu
