// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <limits>

#include "cuda/common/epilogue.cuh"
#include "cuda/linear_sp24.h"

namespace gossamer::cuda {

/// What a launcher tells its kernel of what is fused.
template <typename T>
Epilogue<T> epilogue_of(const LinearSp24Args& args) {
  Epilogue<T> epilogue;
  epilogue.bias = static_cast<const std::uint16_t*>(args.bias);
  epilogue.residual = static_cast<const std::uint16_t*>(args.residual);
  epilogue.x_scale = args.x_scale;
  epilogue.weight_scale = args.weight_scale;
  epilogue.is_half = args.y_dtype == DType::kFloat16;
  epilogue.residual_stride = args.residual_stride;
  epilogue.out = static_cast<int>(args.out);
  epilogue.tokens = static_cast<int>(args.tokens);
  epilogue.least =
      args.activation == Activation::kRelu ? 0.0f : -std::numeric_limits<float>::infinity();
  return epilogue;
}

}  // namespace gossamer::cuda
