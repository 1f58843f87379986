// SPDX-License-Identifier: BSD-3-Clause
// What a convolution does beside the sums of avx2_spmm.cpp, AVX2.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/conv_bands_task.h"
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

inline __m256i mask_of(std::uint32_t lanes) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bit), bit);
}

template <typename Element>
inline Vector add_pixels(Vector pixels, const float* x, std::uint32_t lanes) {
  return _mm256_or_ps(pixels, _mm256_maskload_ps(x, mask_of(lanes)));
}

template <typename Element>
inline Vector add_second_pixels(Vector pixels, const float* x, std::uint32_t lanes) {
  const std::uint32_t at = _pdep_u32(lanes, 0x5555u);
  const Vector first = _mm256_maskload_ps(x, mask_of(at));
  const Vector second = _mm256_maskload_ps(x + 8, mask_of(at >> 8));
  const Vector mixed = _mm256_shuffle_ps(first, second, 0b10'00'10'00);
  const __m256d ordered = _mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0b11'01'10'00);
  return _mm256_or_ps(pixels, _mm256_castpd_ps(ordered));
}

#include "cpu/conv2d.inl"
//
#include "cpu/conv_bands.inl"
//
#include "cpu/conv_quantize.inl"

}  // namespace

namespace gossamer::cpu {

constinit const ConvFunctions avx2_conv2d_f32 = conv_functions_for<Float32>();

constinit const ConvBandsFunctions avx2_conv2d_bands = {
    kLanes,
    copy_bands,
    store_bands,
    {add_bands<1>, add_bands<2>, add_bands<3>, add_bands<4>, add_bands<5>, add_bands<6>,
     add_bands<7>, add_bands<8>, add_bands<9>, add_bands<10>, add_bands<11>, add_bands<12>,
     add_bands<13>, add_bands<14>}};

constinit const ConvQuantizeFunctions avx2_conv2d_pairs = {quantize_tile<2>, make_words<2>, nullptr,
                                                           dequantize_sums, 2};

}  // namespace gossamer::cpu
