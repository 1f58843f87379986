// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/finish_task.h"

namespace gossamer::cpu {

inline constexpr std::int64_t kPieceRows = 32;  ///< outputs of a piece of a block
inline constexpr std::int64_t kPieceLine = 64;  ///< bytes of its rows
inline constexpr std::int64_t kPieceBytes = 2048;
inline constexpr std::int64_t kPairTokens = 32;  ///< tokens of two tiles

/// Y = act(X·Wᵀ + bias + residual) of some block rows in the bsr format and some tokens: blocks of
/// a number of rows that 32 divides and of a number of bytes a row that 64 divides. X has the
/// element type of W. Plain data: instruction-set folders include it.
struct TileBlocksTask {
  const void* values;           ///< [blocks][block_rows][block_cols], of the whole weight
  const std::int64_t* offsets;  ///< [block rows + 1], from the task's first block row on
  const std::int32_t* cols;     ///< of every block of the weight, counting blocks
  std::int64_t block_rows;
  std::int64_t block_cols;
  std::int64_t in;
  const void* x;
  std::int64_t x_stride;
  std::int64_t pieces;  ///< room for what 32 rows keep: even, at least 2
  float* scratch;       ///< 64-byte aligned, of tile_blocks_bytes (cpu/tile_blocks.h) bytes
  FinishTask out;       ///< but for the sums: how many rows and tokens there are, and what follows

  // Quantized calls only: DequantizeTask's, of the first row and token.
  const float* x_scale = nullptr;
  const float* weight_scale = nullptr;
};

void amx_linear_bsr_bf16(const TileBlocksTask& task);
void amx_linear_bsr_int8(const TileBlocksTask& task);

}  // namespace gossamer::cpu
