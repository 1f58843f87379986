// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

// The steps of a convolution that differ from a linear layer's, as plain data: instruction-set
// folders include nothing else. A panel is `lanes` output pixels, a tile is one block of inputs
// (taps × channels) for one panel; the sums are those of K-blocked CSR (kcsr_task.h).
namespace gossamer::cpu {

/// tile[c·tile_stride + i] = x[c·plane + i·step] for `channels` planes and `length` pixels of a
/// row.
struct ConvCopyTask {
  const float* x;
  std::int64_t plane;
  std::int64_t step;
  std::int64_t length;
  std::int64_t channels;
  float* tile;  ///< of the first channel and pixel
  std::int64_t tile_stride;
};

/// tile[c·tile_stride + t] = pixels[t][c]: channels-last pixels transposed. A null pixel is padding
/// and gives zeros.
struct ConvTransposeTask {
  const float* const* pixels;  ///< [lanes]
  std::int64_t channels;
  float* tile;
  std::int64_t tile_stride;
  std::int64_t lanes;  ///< a multiple of 8, or of 4 for the portable step
};

/// y[r·plane + i] = act(sums[r][i] + residual[r·plane + i]) for one run of planar output pixels.
struct ConvStoreTask {
  const float* sums;  ///< of the first row and pixel
  std::int64_t rows;
  std::int64_t lanes;
  std::int64_t length;
  float* y;
  std::int64_t y_plane;
  const float* residual;  ///< or null
  std::int64_t residual_plane;
  bool relu;
};

struct ConvFunctions {
  void (*copy)(const ConvCopyTask&);
  void (*transpose)(const ConvTransposeTask&);
  void (*store)(const ConvStoreTask&);
};

extern const ConvFunctions generic_conv2d_f32;
extern const ConvFunctions avx2_conv2d_f32;
extern const ConvFunctions avx512_conv2d_f32;

}  // namespace gossamer::cpu
