// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), bfloat16 and int8, AMX: weights in the bitmask format are
// expanded into tiles, blocks of whole tiles are read as they lie and those that are not there cost
// nothing.
//
// A product of tiles is dense, so unstructured weights gain what they spare of memory, and blocks
// gain work too.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kcsr_task.h"

namespace {

#include "cpu/avx512/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx512/transpose.inl"
//
#include "cpu/avx512/pack_pairs.inl"
#include "cpu/avx512/pack_quads.inl"
#include "cpu/avx512/quarters.inl"
//
#include "cpu/avx512/store_quads.inl"
#include "cpu/avx512vbmi2/bits.inl"
//
#include "cpu/amx/tiles.inl"
//
#include "cpu/amx/amx_linear.inl"
//
#include "cpu/amx/amx_overlap.inl"

}  // namespace

namespace gossamer::cpu {

constinit const KcsrFunctions amx_bitmask_bf16 = kBitmaskBf16;
constinit const KcsrFunctions amx_bitmask_int8 = kBitmaskInt8;
constinit const KcsrFunctions amx_overlapped_bf16 = kOverlappedBf16;
constinit const KcsrFunctions amx_overlapped_int8 = kOverlappedInt8;
constinit const KcsrFunctions amx_blocks_bf16 = kBlocksBf16;
constinit const KcsrFunctions amx_blocks_int8 = kBlocksInt8;

void amx_count_kept(const BitmaskIndexTask& task) { count_kept(task); }

}  // namespace gossamer::cpu
