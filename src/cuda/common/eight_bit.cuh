// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

// Rounding to the two types of quantized values.
namespace gossamer::cuda {

/// `kMost` is what a row's largest magnitude becomes; `round` takes numbers up to it, `saturate`
/// any. A quotient is beyond it where its scale is a subnormal number, of which there are few.
template <typename Q>
struct EightBit;

template <>
struct EightBit<signed char> {
  static constexpr float kMost = 127.0f;
  static __device__ __forceinline__ std::uint8_t round(float v) {
    return static_cast<std::uint8_t>(__float2int_rn(v));
  }
  static __device__ __forceinline__ std::uint8_t saturate(float v) {
    return static_cast<std::uint8_t>(max(-127, min(127, __float2int_rn(v))));
  }
};

template <>
struct EightBit<__nv_fp8_e4m3> {
  static constexpr float kMost = 448.0f;
  static __device__ __forceinline__ std::uint8_t round(float v) { return saturate(v); }
  static __device__ __forceinline__ std::uint8_t saturate(float v) {
    return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
  }
};

}  // namespace gossamer::cuda
