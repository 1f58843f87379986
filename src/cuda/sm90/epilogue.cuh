// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// What is fused behind the product: y = act(sum + bias + residual), in float32, rounded once.
namespace gossamer::cuda::sm90 {

__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v) {
  if constexpr (__is_same(T, __half)) {
    return __float2half_rn(v);
  } else {
    return __float2bfloat16_rn(v);
  }
}

/// Two results as one word, the first in the low half.
template <typename T>
__device__ __forceinline__ std::uint32_t pack_pair(float first, float second) {
  if constexpr (__is_same(T, __half)) {
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const std::uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const std::uint32_t&>(pair);
  }
}

/// The larger of two numbers, NaN where one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

template <typename T>
struct Epilogue {
  const T* bias;      // [out] or null
  const T* residual;  // [tokens, out] or null
  std::int64_t residual_stride;
  int out;
  int tokens;
  float least;  // 0 under ReLU, otherwise -infinity

  __device__ __forceinline__ float bias_of(int row) const {
    return bias != nullptr && row < out ? to_float(bias[row]) : 0.0f;
  }
  __device__ __forceinline__ float residual_of(int token, int row) const {
    return token < tokens && row < out ? to_float(residual[token * residual_stride + row]) : 0.0f;
  }
  /// `sum` of everything, activated.
  __device__ __forceinline__ float activate(float sum) const { return max_or_nan(sum, least); }
};

}  // namespace gossamer::cuda::sm90
