// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "gossamer/activation.h"

// Activations in float32, in few instructions. With u = 2^-24, float32's unit roundoff, and the
// relative errors that the PTX ISA names, 2^-22 for ex2.approx.ftz and 2^-23 for rcp.approx.ftz:
//
//   * The logistic function takes one ex2 and one rcp. SiLU, and GELU by tanh (tanh u is
//     2σ(2u) − 1), are x·σ(a): relative error at most 4u + u + 2u + u = 8u. The exponent's argument
//     is rounded too, by u (SiLU) or 3u (GELU) of itself, which does what a change of x by as much
//     would do: x, a sum of many, is itself not better known.
//   * GELU is x·Φ(x) with the tail Φ(−|x|) = e^(−x²/2)·t·P(t), t = 1/(1 + p·|x|): the form of
//     Hastings, as Abramowitz & Stegun 7.1.26 has it, but P a minimax fit of the relative error on
//     |x| <= 13.5, where e^(−x²/2) ends. The short P, five terms, is off by 2.9e-5 at most, with
//     the instructions' errors by 2^-15: a sixteenth of float16's unit roundoff 2^-11, less of
//     bfloat16's 2^-8. The long P, nine terms, is that of src/cpu/epilogue.inl, off by 4e-8 up to
//     11.3 and 4e-7 behind: for float32 results, 32u = 2^-19 in all.
//     (tests/python/test_cuda_activations.py checks both fits.)
//
// Results below float32's normal range are zero. NaN stays NaN; infinities give what torch gives.
namespace gossamer::cuda {

/// The larger of two numbers, NaN where one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

/// 2^a.
__device__ __forceinline__ float exp2_approximate(float a) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}

__device__ __forceinline__ float reciprocal_approximate(float a) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}

/// x·σ(a), of a's multiple by −log2(e).
__device__ __forceinline__ float times_logistic(float x, float minus_a_log2e) {
  return x * reciprocal_approximate(1.0f + exp2_approximate(minus_a_log2e));
}

__device__ __forceinline__ float silu(float x) { return times_logistic(x, x * -1.44269504f); }

/// a = 2·√(2/π)·(x + 0.044715·x³).
__device__ __forceinline__ float gelu_tanh(float x) {
  return times_logistic(x, x * __fmaf_rn(x * x, -0.102943240f, -2.30220818f));
}

/// kIsLong: for float32 results.
template <bool kIsLong>
__device__ __forceinline__ float gelu(float x) {
  float polynomial;
  float t;
  if constexpr (kIsLong) {
    t = reciprocal_approximate(__fmaf_rn(fabsf(x), 0.353553391f, 1.0f));
    polynomial = -0.02891737066f;
    polynomial = __fmaf_rn(polynomial, t, 0.139242984f);
    polynomial = __fmaf_rn(polynomial, t, -0.2372142876f);
    polynomial = __fmaf_rn(polynomial, t, 0.1316173612f);
    polynomial = __fmaf_rn(polynomial, t, -0.008112572973f);
    polynomial = __fmaf_rn(polynomial, t, 0.09909637057f);
    polynomial = __fmaf_rn(polynomial, t, 0.1221342613f);
    polynomial = __fmaf_rn(polynomial, t, 0.1411051477f);
    polynomial = __fmaf_rn(polynomial, t, 0.1410480873f);
  } else {
    t = reciprocal_approximate(__fmaf_rn(fabsf(x), 0.375f, 1.0f));
    polynomial = -0.0909842625f;
    polynomial = __fmaf_rn(polynomial, t, 0.201041088f);
    polynomial = __fmaf_rn(polynomial, t, 0.0829757303f);
    polynomial = __fmaf_rn(polynomial, t, 0.157919586f);
    polynomial = __fmaf_rn(polynomial, t, 0.149041176f);
  }
  const float tail = polynomial * t * exp2_approximate(x * (x * -0.721347520f));
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

/// v[i] = act(v[i]). The branch is the same for all threads and taken once for all values.
template <int kCount>
__device__ __forceinline__ void activate(float (&v)[kCount], Activation activation,
                                         bool writes_float) {
  const auto each = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = function(v[i]);
  };
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return each([](float x) { return max_or_nan(x, 0.0f); });
    case Activation::kRelu2:
      return each([](float x) {
        const float positive = max_or_nan(x, 0.0f);
        return positive * positive;
      });
    case Activation::kGelu:
      if (writes_float) return each([](float x) { return gelu<true>(x); });
      return each([](float x) { return gelu<false>(x); });
    case Activation::kGeluTanh:
      return each([](float x) { return gelu_tanh(x); });
    case Activation::kSilu:
      return each([](float x) { return silu(x); });
  }
}

}  // namespace gossamer::cuda
