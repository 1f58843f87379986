// SPDX-License-Identifier: BSD-3-Clause
// The steps of a float32 convolution beside the sums (avx2_spmm_kcsr_f32.cpp), AVX2: pixels of a
// row copied, every second one picked, channels-last pixels transposed, sums stored as planes.
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

constexpr std::int64_t kLanes = 8;

inline __m256 load_step1(const float* x) { return _mm256_loadu_ps(x); }

/// x[0], x[2], … x[14], without touching x[15].
inline __m256 load_step2(const float* x) {
  const __m256 low = _mm256_loadu_ps(x);
  const __m256 high = _mm256_loadu_ps(x + 7);
  const __m256 mixed = _mm256_shuffle_ps(low, high, 0b11'01'10'00);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0b11'01'10'00));
}

/// The last vector overlaps the one before it: masked stores are slow on several processors.
template <int step, typename Load>
inline void copy_channels(const ConvCopyTask& task, Load load) {
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const float* from = task.x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    std::int64_t i = 0;
    for (; i + kLanes <= task.length; i += kLanes) _mm256_storeu_ps(to + i, load(from + i * step));
    if (i == task.length) continue;
    const std::int64_t last = task.length - kLanes;
    _mm256_storeu_ps(to + last, load(from + last * step));
  }
}

void copy_run(const ConvCopyTask& task) {
  if (task.step == 1 && task.length >= kLanes) {
    copy_channels<1>(task, [](const float* x) { return load_step1(x); });
    return;
  }
  if (task.step == 2 && task.length >= kLanes) {
    copy_channels<2>(task, [](const float* x) { return load_step2(x); });
    return;
  }
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const float* from = task.x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    for (std::int64_t i = 0; i < task.length; ++i) to[i] = from[i * task.step];
  }
}

#include "cpu/conv_transpose_f32.inl"

inline __m256 finish(const ConvStoreTask& task, __m256 sum, const float* residual) {
  if (residual != nullptr) sum = _mm256_add_ps(sum, _mm256_loadu_ps(residual));
  // max returns its second operand where one is NaN, so NaN passes through.
  return task.relu ? _mm256_max_ps(_mm256_setzero_ps(), sum) : sum;
}

void store_run(const ConvStoreTask& task) {
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const float* sums = task.sums + row * task.lanes;
    const float* residual =
        task.residual == nullptr ? nullptr : task.residual + row * task.residual_plane;
    float* y = task.y + row * task.y_plane;
    std::int64_t i = 0;
    for (; i + kLanes <= task.length; i += kLanes) {
      const float* from = residual == nullptr ? nullptr : residual + i;
      _mm256_storeu_ps(y + i, finish(task, _mm256_loadu_ps(sums + i), from));
    }
    for (; i < task.length; ++i) {
      float result = sums[i];
      if (residual != nullptr) result += residual[i];
      y[i] = task.relu && result < 0.0f ? 0.0f : result;
    }
  }
}

}  // namespace

namespace gossamer::cpu {

const ConvFunctions avx2_conv2d_f32 = {copy_run, transpose_pixels, store_run};

}  // namespace gossamer::cpu
