// SPDX-License-Identifier: BSD-3-Clause
// What a convolution does beside the sums of avx512_spmm.cpp, AVX-512.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/conv_bands_task.h"
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
inline Vector add_pixels(Vector pixels, const float* x, std::uint32_t lanes) {
  return _mm512_mask_loadu_ps(pixels, static_cast<__mmask16>(lanes), x);
}

template <typename Element>
inline Vector add_second_pixels(Vector pixels, const float* x, std::uint32_t lanes) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const std::uint32_t at = _pdep_u32(lanes, 0x55555555u);  // lane i is element 2i
  const Vector first = _mm512_maskz_loadu_ps(static_cast<__mmask16>(at), x);
  const Vector second = _mm512_maskz_loadu_ps(static_cast<__mmask16>(at >> 16), x + 16);
  return _mm512_mask_mov_ps(pixels, static_cast<__mmask16>(lanes),
                            _mm512_permutex2var_ps(first, even, second));
}

#include "cpu/conv2d.inl"
//
#include "cpu/conv_bands.inl"
//
#include "cpu/conv_quantize.inl"

}  // namespace

namespace gossamer::cpu {

constinit const ConvFunctions avx512_conv2d_f32 = conv_functions_for<Float32>();

constinit const ConvBandsFunctions avx512_conv2d_bands = {
    kLanes,
    copy_bands,
    store_bands,
    {add_bands<1>, add_bands<2>, add_bands<3>, add_bands<4>, add_bands<5>, add_bands<6>,
     add_bands<7>, add_bands<8>, add_bands<9>, add_bands<10>, add_bands<11>, add_bands<12>,
     add_bands<13>, add_bands<14>, add_bands<15>, add_bands<16>}};

constinit const ConvQuantizeFunctions avx512_conv2d_quads = {quantize_tile<4>, make_words<4>,
                                                             make_unsigned, dequantize_sums, 4};

}  // namespace gossamer::cpu
