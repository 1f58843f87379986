// SPDX-License-Identifier: BSD-3-Clause
// The steps of a float32 convolution for any processor, by plain loops.
#include <cstdint>

#include "cpu/conv_task.h"

namespace {

void copy_run(const gossamer::cpu::ConvCopyTask& task) {
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const float* from = task.x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    for (std::int64_t i = 0; i < task.length; ++i) to[i] = from[i * task.step];
  }
}

void transpose_pixels(const gossamer::cpu::ConvTransposeTask& task) {
  for (std::int64_t t = 0; t < task.lanes; ++t) {
    const float* from = task.pixels[t];
    for (std::int64_t c = 0; c < task.channels; ++c) {
      task.tile[c * task.tile_stride + t] = from == nullptr ? 0.0f : from[c];
    }
  }
}

void store_run(const gossamer::cpu::ConvStoreTask& task) {
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const float* sums = task.sums + row * task.lanes;
    for (std::int64_t i = 0; i < task.length; ++i) {
      float result = sums[i];
      if (task.residual != nullptr) result += task.residual[row * task.residual_plane + i];
      task.y[row * task.y_plane + i] = task.relu && result < 0.0f ? 0.0f : result;
    }
  }
}

}  // namespace

namespace gossamer::cpu {

const ConvFunctions generic_conv2d_f32 = {copy_run, transpose_pixels, store_run};

}  // namespace gossamer::cpu
