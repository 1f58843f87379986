// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/common/activations.cuh"

// What is fused behind the product: y = act(x_scale · weight_scale · sum + bias + residual), in
// float32, rounded once.
//
// Most calls write the 16-bit type of X and apply nothing or ReLU. Kernels whose sums fill a
// thread's registers have a path for these alone (`is_plain`), unrolled over the sums; all else is
// done for a few values at a time, with branches that are the same for all threads.
namespace gossamer::cuda {

/// What products of two elements are summed in.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, signed char>, int, float>;

/// A floating type of Y, bias or residual.
enum class FloatType : std::uint8_t { kBFloat16, kFloat16, kFloat32 };

/// What a kernel is told, the type of X and W aside.
template <typename T>
struct Epilogue {
  static constexpr bool kIsScaled = sizeof(T) == 1;

  const void* bias;           // [out] of bias_type or null
  const void* residual;       // [tokens, out] of y_type or null
  const float* x_scale;       // [tokens] or null; read where X has 8 bits
  const float* weight_scale;  // [out] or null; likewise
  std::int64_t residual_stride;
  int out;
  int tokens;
  Activation activation;
  FloatType y_type;
  FloatType bias_type;
  bool is_plain;  // none or ReLU; Y of 16 bits, those of X where X has 16

  __device__ __forceinline__ bool writes_float() const { return y_type == FloatType::kFloat32; }

  // --- Plain results ---

  __device__ __forceinline__ bool is_relu() const { return activation == Activation::kRelu; }
  __device__ __forceinline__ bool writes_half() const {
    if constexpr (kIsScaled) {
      return y_type == FloatType::kFloat16;
    } else {
      return __is_same(T, __half);
    }
  }
  __device__ __forceinline__ float plain_residual_of(int token, int row) const {
    if (token >= tokens || row >= out) return 0.0f;
    const std::uint16_t bits =
        static_cast<const std::uint16_t*>(residual)[token * residual_stride + row];
    return writes_half() ? half_of(bits) : bfloat16_of(bits);
  }
  /// Two results as one word, the first in the low half.
  template <bool kIsHalf>
  __device__ __forceinline__ static std::uint32_t round_pair(float first, float second) {
    if constexpr (kIsHalf) {
      const __half2 pair = __floats2half2_rn(first, second);
      return reinterpret_cast<const std::uint32_t&>(pair);
    } else {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
      return reinterpret_cast<const std::uint32_t&>(pair);
    }
  }
  /// ReLU of two rounded results: rounding keeps their order, and 0.
  template <bool kIsHalf>
  __device__ __forceinline__ static std::uint32_t relu_pair(std::uint32_t pair) {
    if constexpr (kIsHalf) {
      const __half2 result =
          __hmax2_nan(reinterpret_cast<const __half2&>(pair), __float2half2_rn(0.0f));
      return reinterpret_cast<const std::uint32_t&>(result);
    } else {
      const __nv_bfloat162 result =
          __hmax2_nan(reinterpret_cast<const __nv_bfloat162&>(pair), __float2bfloat162_rn(0.0f));
      return reinterpret_cast<const std::uint32_t&>(result);
    }
  }

  // --- Any result ---

  __device__ __forceinline__ float bias_of(int row) const {
    return bias != nullptr && row < out ? load(bias, bias_type, row) : 0.0f;
  }
  __device__ __forceinline__ float residual_of(int token, int row) const {
    return token < tokens && row < out ? load(residual, y_type, token * residual_stride + row)
                                       : 0.0f;
  }
  __device__ __forceinline__ float weight_scale_of(int row) const {
    return weight_scale != nullptr && row < out ? weight_scale[row] : 1.0f;
  }
  __device__ __forceinline__ float x_scale_of(int token) const {
    return x_scale != nullptr && token < tokens ? x_scale[token] : 1.0f;
  }
  /// `sums` of everything, activated in place.
  template <int kCount>
  __device__ __forceinline__ void activate(float (&sums)[kCount]) const {
    cuda::activate(sums, activation, writes_float());
  }
  /// Two results of 16 bits as one word, the first in the low half.
  __device__ __forceinline__ std::uint32_t pack_pair(float first, float second) const {
    return pack_as(y_type == FloatType::kFloat16, first, second);
  }
  /// y[index] = value, rounded.
  __device__ __forceinline__ void store(void* y, std::int64_t index, float value) const {
    if (writes_float()) {
      static_cast<float*>(y)[index] = value;
    } else {
      static_cast<std::uint16_t*>(y)[index] =
          y_type == FloatType::kFloat16 ? __half_as_ushort(__float2half_rn(value))
                                        : __bfloat16_as_ushort(__float2bfloat16_rn(value));
    }
  }

 private:
  __device__ __forceinline__ static float half_of(std::uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
  }
  __device__ __forceinline__ static float bfloat16_of(std::uint16_t bits) {
    return __bfloat162float(__ushort_as_bfloat16(bits));
  }
  __device__ __forceinline__ static float load(const void* data, FloatType type,
                                               std::int64_t index) {
    if (type == FloatType::kFloat32) return static_cast<const float*>(data)[index];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[index];
    return type == FloatType::kFloat16 ? half_of(bits) : bfloat16_of(bits);
  }
  __device__ __forceinline__ static std::uint32_t pack_as(bool is_half, float first, float second) {
    // Both, and one is picked: a branch a pair costs more.
    const std::uint32_t halves = round_pair<true>(first, second);
    const std::uint32_t bfloats = round_pair<false>(first, second);
    return is_half ? halves : bfloats;
  }
};

}  // namespace gossamer::cuda
