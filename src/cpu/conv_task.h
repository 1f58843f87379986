// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/activation.h"

// The steps of a convolution that differ from a linear layer's, as plain data: instruction-set
// folders include nothing else. A panel is `lanes` output pixels, a tile is one block of inputs (a
// few channels, all their taps) for one panel; the sums are those of K-blocked CSR (kcsr_task.h).
// X, Y, bias and residual have the element type of the functions; tiles and sums are float32.
namespace gossamer::cpu {

/// Where one vector of lanes finds neighbouring pixels in a plane of X: lane i at
/// x[offset + i·step], of which only the lanes in the mask exist.
struct ConvPiece {
  std::int64_t offset;  ///< elements; what the mask leaves out may lie before X
  std::uint32_t lanes;  ///< bit i: lane i
};

/// tile[c·tile_stride + v·kLanes + i] = x[c·plane + offset + i·step] for lane i of a piece of
/// vector v, 0 where no piece has the lane. The pieces of vector v are those before ends[v] that
/// are not of a vector before it.
struct ConvCopyTask {
  const void* x;
  std::int64_t plane;
  std::int64_t step;
  std::int64_t channels;
  const ConvPiece* pieces;
  const std::uint32_t* ends;
  std::int64_t vectors;
  float* tile;  ///< of the first channel
  std::int64_t tile_stride;
};

/// tile[c·tile_stride + t] = pixels[t][first + c]: channels-last pixels transposed. A null pixel is
/// padding and gives zeros.
struct ConvTransposeTask {
  const void* const* pixels;  ///< [lanes]
  std::int64_t channels;
  float* tile;
  std::int64_t tile_stride;
  std::int64_t lanes;
  std::int64_t first = 0;
};

/// y[r·y_plane + i] = act(sums[r·lanes + i] + bias[r] + residual[r·y_plane + i]) for one run of
/// planar output pixels.
struct ConvStoreTask {
  const float* sums;  ///< of the first row and pixel
  std::int64_t lanes;
  std::int64_t rows;
  std::int64_t length;
  const void* bias;      ///< of the first row, or null
  const void* residual;  ///< or null
  void* y;
  std::int64_t y_plane;
  Activation activation;
};

struct ConvFunctions {
  std::int64_t vector_lanes;
  void (*copy)(const ConvCopyTask&);
  void (*transpose)(const ConvTransposeTask&);
  void (*store)(const ConvStoreTask&);
};

/// A tile of floats to whole numbers, `inputs` neighbouring ones in 32 bits: to[k][t] holds
/// from[inputs·k + j][t] · inverse[t], rounded, for all j; zero where there is no such input.
struct ConvQuantizeTask {
  const float* from;  ///< [columns][lanes]
  std::int64_t columns;
  std::int64_t lanes;
  const float* inverse;  ///< [lanes], 1 / scale
  std::uint32_t* to;     ///< [ceil(columns / inputs)][lanes]
};

/// Words of an image: to[i] holds from[j·plane + i·step] · inverse, rounded and signed, for all j <
/// inputs. Either step is 1, or plane is 1 and step is `inputs`.
struct ConvWordsTask {
  const float* from;
  std::int64_t plane;
  std::int64_t step;
  float inverse;
  std::int64_t count;
  std::uint32_t* to;
};

/// 32-bit sums to floats in their place: (sums[r][t] - corrections[r]) · weight_scale[r] ·
/// x_scale[t].
struct ConvDequantizeTask {
  float* sums;  ///< [rows][lanes]
  std::int64_t rows;
  std::int64_t lanes;
  const std::int32_t* corrections;  ///< or null: 0
  const float* weight_scale;
  const float* x_scale;  ///< [lanes]
};

struct ConvQuantizeFunctions {
  void (*quantize)(const ConvQuantizeTask&);
  void (*make_words)(const ConvWordsTask&);
  /// 128 is added to every byte of `count` words; null where a tile's are signed.
  void (*make_unsigned)(std::uint32_t* words, std::int64_t count);
  void (*dequantize)(const ConvDequantizeTask&);
  std::int64_t inputs;  ///< 4 bytes, each plus 128, or 2 of 16 bits
};

extern const ConvQuantizeFunctions generic_conv2d_pairs;
extern const ConvQuantizeFunctions avx2_conv2d_pairs;
extern const ConvQuantizeFunctions avx512_conv2d_quads;

extern const ConvFunctions generic_conv2d_f32;
extern const ConvFunctions avx2_conv2d_f32;
extern const ConvFunctions avx512_conv2d_f32;

}  // namespace gossamer::cpu
