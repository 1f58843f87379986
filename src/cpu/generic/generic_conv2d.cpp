// SPDX-License-Identifier: BSD-3-Clause
// What a convolution does beside the sums of generic_spmm.cpp, for any processor.
#include <cstdint>
#include <cstring>

#include "cpu/conv_bands_task.h"
#include "cpu/conv_task.h"
#include "cpu/finish_task.h"

namespace {

#include "cpu/generic/vector.inl"
//
#include "cpu/epilogue.inl"

inline float first_lane(Vector v) { return v[0]; }

inline void transpose_block(Vector (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float held = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = held;
    }
  }
}

template <typename Element>
inline Vector add_pixels(Vector pixels, const float* x, std::uint32_t lanes) {
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1u) != 0) pixels[i] = x[i];
  }
  return pixels;
}

template <typename Element>
inline Vector add_second_pixels(Vector pixels, const float* x, std::uint32_t lanes) {
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1u) != 0) pixels[i] = x[2 * i];
  }
  return pixels;
}

#include "cpu/conv2d.inl"
//
#include "cpu/conv_bands.inl"

}  // namespace

namespace gossamer::cpu {

constinit const ConvFunctions generic_conv2d_f32 = conv_functions_for<Float32>();

constinit const ConvBandsFunctions generic_conv2d_bands = {
    kLanes,
    copy_bands,
    store_bands,
    {add_bands<1>, add_bands<2>, add_bands<3>, add_bands<4>, add_bands<5>, add_bands<6>,
     add_bands<7>, add_bands<8>}};

}  // namespace gossamer::cpu
