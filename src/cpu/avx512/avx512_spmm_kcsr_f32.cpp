// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual), W in K-blocked CSR, float32, AVX-512.
//
//       64 or 128 tokens = 4 or 8 vectors
//      ┌───────────────┐
//  KC  │ tile, in L1   │
//      └───────────────┘
//
// As the AVX2 kernel with vectors of 16: two loads a cycle bound it at 64 flops a cycle. With 8
// vectors a tile of 64 inputs fills L1, with 4 vectors one of 128, so the best block differs with
// the density. Bytes: 5 a kept value, read once for every panel of tokens.
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

}  // namespace

namespace gossamer::cpu {

const KcsrFunctions avx512_spmm_kcsr_f32 = {
    kLanes,
    pack_tile,
    {add_block<1>, add_block<2>, add_block<3>, add_block<4>, add_block<6>, add_block<8>},
    store_panel,
    nullptr,  // gathers of 16 are no faster than AVX2's of 8, whose rows run here too
    nullptr};

}  // namespace gossamer::cpu
