// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// What is fused behind the product: y = act(x_scale · weight_scale · sum + bias + residual), in
// float32, rounded once. Bias, residual and Y have 16 bits: those of X where X has 16 bits too,
// otherwise those that the call asks for. Smooth activations are left to
// torch's operators: unrolled over a tile's accumulators they spill registers of every call.
namespace gossamer::cuda {

/// The larger of two numbers, NaN where one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

template <typename T>
struct Epilogue {
  static constexpr bool kIsScaled = sizeof(T) == 1;

  const std::uint16_t* bias;      // [out] or null
  const std::uint16_t* residual;  // [tokens, out] or null
  const float* x_scale;           // [tokens] or null; read where X has 8 bits
  const float* weight_scale;      // [out] or null; likewise
  std::int64_t residual_stride;
  int out;
  int tokens;
  float least;   // 0 under ReLU, otherwise -infinity
  bool is_half;  // Y is float16, not bfloat16; read where X has 8 bits

  __device__ __forceinline__ bool writes_half() const {
    if constexpr (kIsScaled) {
      return is_half;
    } else {
      return __is_same(T, __half);
    }
  }
  __device__ __forceinline__ float to_float(std::uint16_t bits) const {
    if (writes_half()) return __half2float(__ushort_as_half(bits));
    return __bfloat162float(__ushort_as_bfloat16(bits));
  }
  __device__ __forceinline__ std::uint16_t from_float(float v) const {
    if (writes_half()) return __half_as_ushort(__float2half_rn(v));
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
  /// Two results as one word, the first in the low half.
  __device__ __forceinline__ std::uint32_t pack_pair(float first, float second) const {
    if (writes_half()) {
      const __half2 pair = __floats2half2_rn(first, second);
      return reinterpret_cast<const std::uint32_t&>(pair);
    }
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const std::uint32_t&>(pair);
  }

  __device__ __forceinline__ float bias_of(int row) const {
    return bias != nullptr && row < out ? to_float(bias[row]) : 0.0f;
  }
  __device__ __forceinline__ float residual_of(int token, int row) const {
    return token < tokens && row < out ? to_float(residual[token * residual_stride + row]) : 0.0f;
  }
  __device__ __forceinline__ float weight_scale_of(int row) const {
    return weight_scale != nullptr && row < out ? weight_scale[row] : 1.0f;
  }
  __device__ __forceinline__ float x_scale_of(int token) const {
    return x_scale != nullptr && token < tokens ? x_scale[token] : 1.0f;
  }
  /// `sum` of everything, activated.
  __device__ __forceinline__ float activate(float sum) const { return max_or_nan(sum, least); }
};

}  // namespace gossamer::cuda
