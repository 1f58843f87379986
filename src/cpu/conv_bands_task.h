// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/conv_task.h"
#include "gossamer/activation.h"

// The steps of a convolution over bands, as plain data: instruction-set folders include nothing
// else. A lane is one column of one band: some output rows of an image below each other. A panel is
// R rows of V vectors of lanes, NV = R·V vectors in all, row by row. A tile holds, for every
// channel of a block of inputs and every horizontal tap, the input rows that the bands see, one
// below the other: V vectors each. So one vertical tap finds the R·V vectors of a panel side by
// side, and the next vertical tap finds its own one row further down; nothing is copied for it.
namespace gossamer::cpu {

inline constexpr int kMaxBandVectors = 16;

/// tile[c·tile_stride + v·kLanes + i] = x[c·plane + offset + i·step] for lane i of one of the
/// `parts` pieces of vector v, 0 where none of them has the lane. A piece without lanes has an
/// offset inside the plane.
struct ConvBandsCopyTask {
  const float* x;
  std::int64_t plane;
  std::int64_t step;
  std::int64_t channels;
  const ConvPiece* pieces;  ///< [vectors][parts]
  std::int64_t parts;       ///< at least 1
  std::int64_t vectors;
  float* tile;  ///< of the first channel
  std::int64_t tile_stride;
  std::int64_t next;        ///< where in each plane later panels will read, for so many
  std::int64_t next_lines;  ///< lines of 64 bytes; 0: nowhere
};

/// sums[row][:] += Σ value · (the NV vectors from vector `place` of the tile on) over the rows'
/// kept values in one block of inputs. Row r keeps values [begins[r], begins[r + 1]).
struct ConvBandsAddTask {
  const float* values;
  const std::uint16_t* places;  ///< of the values
  const std::uint32_t* begins;  ///< [rows + 1]
  std::int64_t rows;
  const float* tile;
  float* sums;  ///< [rows][NV · kLanes]
  bool first;   ///< sums hold nothing yet
};

/// y[r·y_plane + b·y_row + i] = act(sums[r·sums_stride + b·band_stride + i] + bias[r] +
/// residual[…]) for `rows` filters, `band_rows` rows of a band and `length` neighbouring pixels.
struct ConvBandsStoreTask {
  const float* sums;
  std::int64_t sums_stride;
  std::int64_t band_stride;
  std::int64_t rows;
  std::int64_t band_rows;
  std::int64_t length;
  const float* bias;      ///< of the first filter, or null
  const float* residual;  ///< or null
  float* y;
  std::int64_t y_plane;
  std::int64_t y_row;
  Activation activation;
};

struct ConvBandsFunctions {
  std::int64_t vector_lanes;
  void (*copy)(const ConvBandsCopyTask&);
  void (*store)(const ConvBandsStoreTask&);
  /// add[NV - 1] takes panels of NV vectors; null where they would not fit the registers.
  void (*add[kMaxBandVectors])(const ConvBandsAddTask&);
};

extern const ConvBandsFunctions generic_conv2d_bands;
extern const ConvBandsFunctions avx2_conv2d_bands;
extern const ConvBandsFunctions avx512_conv2d_bands;

}  // namespace gossamer::cpu
