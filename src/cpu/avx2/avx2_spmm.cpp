// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) in K-blocks, float32, bfloat16 and float16, AVX2.
//
//       64 tokens = 8 vectors
//      ┌───────────────┐
//  KC  │ tile, in L1   │
//      └───────────────┘
//
// One kept value costs a broadcast, an index and a multiply-add a vector whose other operand is
// loaded from the tile: two loads a cycle bound it, that is 32 flops a cycle, as many as dense AVX2
// code reaches. Ideal gain: 1 / density. Bytes: 5 a kept float32, read once for every panel of
// tokens. The 16-bit types are widened where they are read (X once a tile, values as they are
// broadcast), computed in float32 and rounded once.
//
// Against torch's dense linear at 256 tokens, 768 of 3072 inputs, both transposes included, one
// thread of a zen5-avx512 (2026-11-23): 1.8x / 2.8x / 3.8x / 6.5x at 50 / 70 / 80 / 90 %.
// Row pairs, float32, panels of eight vectors, in turns: 3.4 / 2.4 / 1.4 / 0.9 ms at 70 / 80 / 90 /
// 95 % zeros, 3072 of 768 inputs, 128 tokens, one thread of a 2-processor Emerald Rapids held to
// AVX2 (2026-11-30); torch's dense product held likewise takes 8.2, a kcsr row 3.6 / 2.6 / 1.6
// / 1.2.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kcsr_task.h"

namespace {

#include "cpu/avx2/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx2/transpose.inl"
#include "cpu/spmm_kcsr.inl"

constexpr int kRegisters = 16;
#include "cpu/spmm_blocks.inl"
#include "cpu/spmm_rowpairs.inl"

/// One token: eight kept values at once, their inputs gathered from the block of X, which is in L1.
void add_one_token(const gossamer::cpu::KcsrAddTask& task) {
  const auto* values = static_cast<const float*>(task.values);
  const auto* x = static_cast<const float*>(task.tile);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    float* sums = task.sums + row * kLanes;
    Vector sum = task.first ? zero() : load(sums);
    const std::int64_t end = task.ends[row];
    for (std::int64_t i = task.begins[row]; i < end; i += 8) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(task.cols + i));
      const __m256i index = _mm256_cvtepu8_epi32(bytes);
      // Values past the end belong to other rows and may be NaN or infinite: they are masked, not
      // multiplied by zero.
      const __m256i mask = first_lanes(end - i);
      const Vector inputs =
          _mm256_mask_i32gather_ps(zero(), x, index, _mm256_castsi256_ps(mask), 4);
      sum = multiply_add(_mm256_maskload_ps(values + i, mask), inputs, sum);
    }
    store(sums, sum);
  }
}

/// Adds up the one vector of partial sums that each row has.
void store_one_token(const gossamer::cpu::KcsrStoreTask& task) {
  constexpr std::int64_t kRows = 128;
  float buffer[kRows];
  for (std::int64_t row = 0; row < task.out.rows; row += kRows) {
    const std::int64_t rows = task.out.rows - row < kRows ? task.out.rows - row : kRows;
    for (std::int64_t i = 0; i < rows; ++i) {
      const __m256 sum = _mm256_load_ps(task.sums + (row + i) * 8);
      __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
      half = _mm_add_ps(half, _mm_movehl_ps(half, half));
      buffer[i] = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
    finish<Float32>(part_of<Float32>(task.out, buffer, kRows, row, rows, 0, 1));
  }
}

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

constexpr gossamer::cpu::KcsrFunctions with_one_token() {
  gossamer::cpu::KcsrFunctions functions = functions_for<Float32>();
  functions.add_one = add_one_token;
  functions.store_one = store_one_token;
  return functions;
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

constinit const KcsrFunctions avx2_spmm_f32 = with_one_token();
constinit const KcsrFunctions avx2_spmm_bf16 = functions_for<BFloat16>();
constinit const KcsrFunctions avx2_spmm_f16 = functions_for<Float16>();
constinit const KcsrFunctions avx2_spmm_rowpairs_f32 =
    with_row_pairs<ElementUnit<Float32>>(functions_for<Float32>());

constinit const KcsrFunctions avx2_spmm_blocks_f32 = block_functions_for<Float32>();
constinit const KcsrFunctions avx2_spmm_blocks_bf16 = block_functions_for<BFloat16>();
constinit const KcsrFunctions avx2_spmm_blocks_f16 = block_functions_for<Float16>();

}  // namespace gossamer::cpu
