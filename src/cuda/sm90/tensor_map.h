// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda.h>

#include <cstdint>

#include "gossamer/dtype.h"

namespace gossamer::cuda::sm90 {

/// A matrix as the copy engine sees it, in boxes of 128 bytes by `box_rows`.
struct TensorBox {
  const void* data = nullptr;
  DType dtype = DType::kBFloat16;  ///< of 16 or 8 bits
  std::int64_t columns = 0;
  std::int64_t rows = 0;
  std::int64_t stride = 0;  ///< elements between rows
  int box_rows = 0;         ///< at most 256
};

/// True where the copy engine can read or write the matrix: base and rows aligned to 16 bytes, rows
/// that do not overlap.
bool tma_can_reach(const void* data, DType dtype, std::int64_t columns, std::int64_t stride);

/// The descriptor, with the 128-byte swizzle. Throws Error(kUnsupported) where the driver refuses.
CUtensorMap make_tensor_map(const TensorBox& box);

/// What the copy engine takes a tile of a packed weight for: a few lines of this many bytes, which
/// divide the tiles of every type.
inline constexpr int kTileLine = 512;

/// A packed weight's tiles, [row tiles][input tiles * lines of a tile][kTileLine bytes].
struct TilesBox {
  const void* tiles = nullptr;  ///< aligned to 16 bytes
  int tile_bytes = 0;           ///< a multiple of kTileLine
  int row_tiles = 0;
  int input_tiles = 0;
  int box_row_tiles = 0;  ///< row tiles of one copy; past the last one zeros, no legal metadata
};

/// The descriptor of boxes of one tile of inputs by `box_row_tiles`.  Throws Error(kUnsupported)
/// where the driver refuses.
CUtensorMap make_tiles_map(const TilesBox& box);

}  // namespace gossamer::cuda::sm90
