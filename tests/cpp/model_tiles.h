// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "cpu/kcsr_task.h"
#include "cpu/tile_blocks_task.h"

// The functions of AMX on a model of its tile registers in plain code (and AVX-512 around it).
namespace gossamer::cpu {

extern const KcsrFunctions model_bitmask_bf16;
extern const KcsrFunctions model_bitmask_int8;
extern const KcsrFunctions model_overlapped_bf16;
extern const KcsrFunctions model_overlapped_int8;
extern const KcsrFunctions model_blocks_bf16;
extern const KcsrFunctions model_blocks_int8;
void model_count_kept(const BitmaskIndexTask& task);
void model_linear_bsr_bf16(const TileBlocksTask& task);
void model_linear_bsr_int8(const TileBlocksTask& task);

}  // namespace gossamer::cpu
