// SPDX-License-Identifier: BSD-3-Clause
// What a convolution does beside the sums of avx2_spmm.cpp, AVX2.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/conv_task.h"
#include "cpu/kcsr_task.h"

namespace {

#include "cpu/avx2/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx2/transpose.inl"

inline void transpose_block(Vector (&r)[kLanes]) { transpose_8x8(r); }
inline float first_lane(Vector v) { return _mm256_cvtss_f32(v); }

/// The even elements of 15, in order.
inline Vector evens(Vector first, Vector from_seventh) {
  const Vector mixed = _mm256_shuffle_ps(first, from_seventh, 0b11'01'10'00);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0b11'01'10'00));
}

template <typename Element>
inline Vector every_second(const typename Element::Type* x) {
  return evens(Element::load(x), Element::load(x + 7));
}

template <typename Element>
inline void copy_short(const typename Element::Type* from, float* to, std::int64_t length) {
  if constexpr (sizeof(typename Element::Type) == sizeof(float)) {
    if (length >= 4) {
      _mm_storeu_ps(to, _mm_loadu_ps(from));
      _mm_storeu_ps(to + length - 4, _mm_loadu_ps(from + length - 4));
      return;
    }
  }
  for (std::int64_t i = 0; i < length; ++i) to[i] = first_lane(Element::load_first(from + i, 1));
}

#include "cpu/conv2d.inl"
//
#include "cpu/conv_quantize.inl"

}  // namespace

namespace gossamer::cpu {

constinit const ConvFunctions avx2_conv2d_f32 = conv_functions_for<Float32>();

constinit const ConvQuantizeFunctions avx2_conv2d_pairs = {quantize_tile<2>, dequantize_sums, 2};

}  // namespace gossamer::cpu
