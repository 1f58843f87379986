// SPDX-License-Identifier: BSD-3-Clause
// The steps of a float32 convolution beside the sums (avx512_spmm_kcsr_f32.cpp), AVX-512: pixels of
// a row copied, every second one picked, channels-last pixels transposed, sums stored as planes.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/conv_task.h"
#include "cpu/kcsr_task.h"

namespace {

using gossamer::cpu::ConvCopyTask;
using gossamer::cpu::ConvStoreTask;
using gossamer::cpu::ConvTransposeTask;

#include "cpu/transpose_f32.inl"

constexpr std::int64_t kLanes = 16;

inline __mmask16 first(std::int64_t count) {
  return static_cast<__mmask16>((1u << static_cast<unsigned>(count)) - 1u);
}

/// `count` floats, 1 to 16.
inline __m512 load_step1(const float* x, std::int64_t count) {
  return _mm512_maskz_loadu_ps(first(count), x);
}

/// x[0], x[2], … x[2·count − 2]; nothing behind the last is touched.
inline __m512 load_step2(const float* x, std::int64_t count) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const std::int64_t floats = 2 * count - 1;
  const __m512 low = _mm512_maskz_loadu_ps(first(floats < 16 ? floats : 16), x);
  const __m512 high =
      floats > 16 ? _mm512_maskz_loadu_ps(first(floats - 16), x + 16) : _mm512_setzero_ps();
  return _mm512_permutex2var_ps(low, even, high);
}

template <int step, typename Load>
inline void copy_channels(const ConvCopyTask& task, Load load) {
  const std::int64_t whole = task.length / kLanes * kLanes;
  const std::int64_t rest = task.length - whole;
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const float* from = task.x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      _mm512_storeu_ps(to + i, load(from + i * step, kLanes));
    }
    if (rest > 0) {
      _mm512_mask_storeu_ps(to + whole, first(rest), load(from + whole * step, rest));
    }
  }
}

void copy_run(const ConvCopyTask& task) {
  if (task.step == 1) {
    copy_channels<1>(task, [](const float* x, std::int64_t n) { return load_step1(x, n); });
    return;
  }
  if (task.step == 2) {
    copy_channels<2>(task, [](const float* x, std::int64_t n) { return load_step2(x, n); });
    return;
  }
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const float* from = task.x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    for (std::int64_t i = 0; i < task.length; ++i) to[i] = from[i * task.step];
  }
}

#include "cpu/conv_transpose_f32.inl"

void store_run(const ConvStoreTask& task) {
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const float* sums = task.sums + row * task.lanes;
    float* y = task.y + row * task.y_plane;
    for (std::int64_t i = 0; i < task.length; i += kLanes) {
      const __mmask16 mask = first(task.length - i < kLanes ? task.length - i : kLanes);
      __m512 sum = _mm512_maskz_loadu_ps(mask, sums + i);
      if (task.residual != nullptr) {
        const float* from = task.residual + row * task.residual_plane + i;
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, from));
      }
      // max returns its second operand where one is NaN, so NaN passes through.
      if (task.relu) sum = _mm512_max_ps(_mm512_setzero_ps(), sum);
      _mm512_mask_storeu_ps(y + i, mask, sum);
    }
  }
}

}  // namespace

namespace gossamer::cpu {

const ConvFunctions avx512_conv2d_f32 = {copy_run, transpose_pixels, store_run};

}  // namespace gossamer::cpu
