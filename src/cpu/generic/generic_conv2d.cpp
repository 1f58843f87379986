// SPDX-License-Identifier: BSD-3-Clause
// What a convolution does beside the sums of generic_spmm.cpp, for any processor.
#include <cstdint>
#include <cstring>

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
inline Vector every_second(const typename Element::Type* x) {
  return Vector{x[0], x[2], x[4], x[6]};
}

template <typename Element>
inline void copy_short(const typename Element::Type* from, float* to, std::int64_t length) {
  for (std::int64_t i = 0; i < length; ++i) to[i] = from[i];
}

#include "cpu/conv2d.inl"

}  // namespace

namespace gossamer::cpu {

constinit const ConvFunctions generic_conv2d_f32 = conv_functions_for<Float32>();

}  // namespace gossamer::cpu
