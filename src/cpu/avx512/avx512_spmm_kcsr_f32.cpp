// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), W in K-blocked CSR, float32, AVX-512.
//
//   64 or 128 tokens = 4 or 8 vectors   As the AVX2 kernel with vectors of 16: two loads a cycle
//   bound it at 64 flops a
//      ┌───────────────┐                cycle. With 8 vectors a tile of 64 inputs fills L1, with 4
//      one of 128, so
//  KC  │ tile, in L1   │                the best block differs with the density.
//      └───────────────┘                Bytes: 5 a kept value, read once for every panel of tokens.
//
// Against torch's dense linear at 256 tokens, 768 of 3072 inputs, both transposes included, one
// thread of a zen5-avx512 (2026-11-23): 2.7x / 4.1x / 5.3x / 8.5x at 50 / 70 / 80 / 90 %.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kcsr_task.h"

namespace {

using Vector = __m512;
constexpr std::int64_t kLanes = 16;

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector load(const float* p) { return _mm512_load_ps(p); }
inline void store(float* p, Vector v) { _mm512_store_ps(p, v); }
inline Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }

#include "cpu/spmm_kcsr.inl"
#include "cpu/transpose_f32.inl"

/// One token: sixteen kept values at once, their inputs gathered from the block of X, which is in
/// L1.
void add_one_token(const gossamer::cpu::KcsrAddTask& task) {
  for (std::int64_t row = task.row_begin; row < task.row_end; ++row) {
    float* sums = task.sums + (row - task.row_begin) * kLanes;
    Vector sum = task.first ? zero() : load(sums);
    if (task.first && task.bias != nullptr) {
      sum = _mm512_mask_broadcastss_ps(sum, 1, _mm_load_ss(task.bias + row));
    }
    const std::int64_t end = task.segments[row + 1];
    for (std::int64_t i = task.segments[row]; i < end; i += 16) {
      const std::int64_t left = end - i;
      const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
      const __m512i index =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(task.cols + i)));
      // Values past the end belong to other rows and may be NaN or infinite: they are masked, not
      // multiplied by zero.
      const Vector x = _mm512_mask_i32gather_ps(zero(), mask, index, task.tile, 4);
      sum = multiply_add(_mm512_maskz_loadu_ps(mask, task.values + i), x, sum);
    }
    store(sums, sum);
  }
}

}  // namespace

namespace gossamer::cpu {

const KcsrFunctions avx512_spmm_kcsr_f32 = {
    kLanes,
    pack_tile,
    {add_block<1>, add_block<2>, add_block<3>, add_block<4>, add_block<6>, add_block<8>},
    store_panel,
    add_one_token,
    store_one_token<kLanes>};

}  // namespace gossamer::cpu
