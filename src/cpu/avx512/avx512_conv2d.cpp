// SPDX-License-Identifier: BSD-3-Clause
// What a convolution does beside the sums of avx512_spmm.cpp, AVX-512.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/conv_task.h"
#include "cpu/kcsr_task.h"

namespace {

#include "cpu/avx512/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx512/transpose.inl"

inline void transpose_block(Vector (&r)[kLanes]) { transpose_16x16(r); }
inline float first_lane(Vector v) { return _mm512_cvtss_f32(v); }

template <typename Element>
inline Vector every_second(const typename Element::Type* x) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(Element::load(x), even, Element::load(x + 15));
}

template <typename Element>
inline void copy_short(const typename Element::Type* from, float* to, std::int64_t length) {
  Float32::store_first(to, Element::load_first(from, length), length);
}

#include "cpu/conv2d.inl"
//
#include "cpu/conv_quantize.inl"

}  // namespace

namespace gossamer::cpu {

constinit const ConvFunctions avx512_conv2d_f32 = conv_functions_for<Float32>();

constinit const ConvQuantizeFunctions avx512_conv2d_quads = {quantize_tile<4>, dequantize_sums, 4};

}  // namespace gossamer::cpu
