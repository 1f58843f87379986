// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), bfloat16 and int8, AMX, many tokens: blocks of whole pieces of
// 32 rows by 64 bytes. X is the left operand and is not turned, kept blocks are, and Y is written
// as the sums come. Blocks that are not there cost nothing.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/tile_blocks_task.h"

namespace {

#include "cpu/avx512/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx512/dequantize.inl"
#include "cpu/avx512/quarters.inl"
//
#include "cpu/amx/tiles.inl"
//
#include "cpu/amx/amx_linear_bsr.inl"

}  // namespace

namespace gossamer::cpu {

void amx_linear_bsr_bf16(const TileBlocksTask& task) { multiply_tile_blocks<Bf16Pieces>(task, 2); }
void amx_linear_bsr_int8(const TileBlocksTask& task) { multiply_tile_blocks<Int8Pieces>(task, 1); }

}  // namespace gossamer::cpu
