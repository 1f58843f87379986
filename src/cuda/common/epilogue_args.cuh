// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <type_traits>

#include "cuda/common/epilogue.cuh"
#include "cuda/linear_sp24.h"

namespace gossamer::cuda {

inline FloatType float_type(DType dtype) {
  if (dtype == DType::kFloat32) return FloatType::kFloat32;
  return dtype == DType::kFloat16 ? FloatType::kFloat16 : FloatType::kBFloat16;
}

/// What a launcher tells its kernel of what is fused.
template <typename T>
Epilogue<T> epilogue_of(const LinearSp24Args& args) {
  static_assert(std::is_trivially_copyable_v<Epilogue<T>>);
  Epilogue<T> epilogue;
  epilogue.bias = args.bias;
  epilogue.residual = args.residual;
  epilogue.x_scale = args.x_scale;
  epilogue.weight_scale = args.weight_scale;
  epilogue.y_type = float_type(args.y_dtype);
  epilogue.bias_type = float_type(args.bias_dtype);
  epilogue.residual_stride = args.residual_stride;
  epilogue.out = static_cast<int>(args.out);
  epilogue.tokens = static_cast<int>(args.tokens);
  epilogue.activation = args.activation;
  const bool is_clamp =
      args.activation == Activation::kNone || args.activation == Activation::kRelu;
  const bool is_usual_type =
      Epilogue<T>::kIsScaled ? args.y_dtype != DType::kFloat32 : args.y_dtype == args.dtype;
  epilogue.is_plain = is_clamp && is_usual_type;
  return epilogue;
}

}  // namespace gossamer::cuda
