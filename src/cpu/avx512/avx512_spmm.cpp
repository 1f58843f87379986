// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) in K-blocks, float32, bfloat16 and float16, AVX-512.
//
//       64 or 128 tokens = 4 or 8 vectors
//      ┌───────────────┐
//  KC  │ tile, in L1   │
//      └───────────────┘
//
// As the AVX2 kernel with vectors of 16: two loads a cycle bound it at 64 flops a cycle. With 8
// vectors a tile of 64 inputs fills L1, with 4 vectors one of 128, so the best block differs with
// the density. Bytes: 5 a kept float32, read once for every panel of tokens.
//
// Against torch's dense linear at 256 tokens, 768 of 3072 inputs, both transposes included, one
// thread of a zen5-avx512 (2026-11-23): 2.7x / 4.1x / 5.3x / 8.5x at 50 / 70 / 80 / 90 %.
// Row pairs, float32: sums of two rows are a register tile of up to 16 vectors. Against the
// quickest dense engine (4.3 ms) at 128 tokens, 3072 of 768 inputs, transposes included, one thread
// of a 2-processor Emerald Rapids (2026-11-30): 1.5x / 2.3x / 3.0x / 4.8x / 7.4x at 50 / 70 / 80 /
// 90 / 95 %, where the rows above reach 1.3x / 1.9x / 2.5x / 3.9x / 5.8x.
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
#include "cpu/spmm_kcsr.inl"

constexpr int kRegisters = 32;
#include "cpu/spmm_blocks.inl"
#include "cpu/spmm_rowpairs.inl"

// Gathers of 16 are no faster than AVX2's of 8, whose rows for a single token run here too.
template <typename Element>
constexpr gossamer::cpu::KcsrFunctions functions_for() {
  return {kLanes,
          pack_tile<Element>,
          {add_units<ElementUnit<Element>, 1>, add_units<ElementUnit<Element>, 2>,
           add_units<ElementUnit<Element>, 3>, add_units<ElementUnit<Element>, 4>,
           add_units<ElementUnit<Element>, 6>, add_units<ElementUnit<Element>, 8>},
          store_panel<Element>,
          nullptr,
          nullptr,
          {}};
}

template <typename Element>
constexpr gossamer::cpu::KcsrFunctions block_functions_for() {
  using Unit = ElementUnit<Element>;
  return {kLanes,
          pack_tile<Element>,
          {add_blocks<Unit, 1>, add_blocks<Unit, 2>, add_blocks<Unit, 3>, add_blocks<Unit, 4>,
           add_blocks<Unit, 6>, add_blocks<Unit, 8>},
          store_panel<Element>,
          nullptr,
          nullptr,
          {}};
}

}  // namespace

namespace gossamer::cpu {

constinit const KcsrFunctions avx512_spmm_f32 = functions_for<Float32>();
constinit const KcsrFunctions avx512_spmm_bf16 = functions_for<BFloat16>();
constinit const KcsrFunctions avx512_spmm_f16 = functions_for<Float16>();
constinit const KcsrFunctions avx512_spmm_rowpairs_f32 =
    with_row_pairs<ElementUnit<Float32>>(functions_for<Float32>());

constinit const KcsrFunctions avx512_spmm_blocks_f32 = block_functions_for<Float32>();
constinit const KcsrFunctions avx512_spmm_blocks_bf16 = block_functions_for<BFloat16>();
constinit const KcsrFunctions avx512_spmm_blocks_f16 = block_functions_for<Float16>();

}  // namespace gossamer::cpu
