// SPDX-License-Identifier: BSD-3-Clause
// Y = act(scales · X·Wᵀ + bias + residual) in K-blocks, int8, AVX-512 with VBMI2 and VNNI.
//
//   four weights, broadcast  ·  four inputs of 16 tokens, from the tile  -- vpdpbusd
//
// Four times the multiply-adds of float32 an instruction, for four neighbouring inputs. Where the
// pattern keeps fours (block:1x4:S) none is wasted. Where it does not, a four is computed if any of
// it is kept: of density d are 1 - (1 - d)⁴ of the fours, 0.94 at 50 % and 0.34 at 90 % zeros.
//
// vpdpbusd multiplies unsigned by signed bytes: inputs are stored plus 128, and 128 times the sum
// of a row's weights is subtracted at the end. All of it is exact in 32 bits.
//
// Against torch's dense int8 product (torch._int_mm, no scales) at 128 tokens, 1024×1024, one
// thread of a zen5-avx512 (2026-11-23), at 50 / 70 / 80 / 90 %: 1×4 blocks 1.0x / 1.6x / 2.3x
// / 3.2x, unstructured 0.7x / 0.8x / 1.0x / 1.5x.
//
// Row pairs of fours (spmm_rowpairs.inl), 128 tokens, 3072×768, one thread of an
// emeraldrapids-avx512 (2026-11-30): 5.7, 6.3, 7.3 and 9.6 cycles for eight vpdpbusd at 50, 80, 90
// and 95 % of 1×4 blocks.
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
#include "cpu/avx512vbmi2/bits.inl"
#include "cpu/spmm_kcsr.inl"

constexpr int kRegisters = 32;
#include "cpu/spmm_blocks.inl"
//
#include "cpu/spmm_rowpairs.inl"

inline __m512i bits_of(Vector v) { return _mm512_castps_si512(v); }

/// A unit of four weights; sums are integers in registers that are typed as floats.
struct QuadUnit {
  using Type = std::uint32_t;
  static constexpr std::int64_t kInputs = 4;
  static constexpr int kChains = 12;
  static Vector broadcast(const std::uint32_t* p) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<std::int32_t>(*p)));
  }
  /// The instruction itself: of the intrinsic GCC 12 moves sums from register to register.
  static Vector multiply_add(Vector weights, Vector inputs, Vector sum) {
    __m512i sums = bits_of(sum);
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bits_of(inputs)), "v"(bits_of(weights)));
    return _mm512_castsi512_ps(sums);
  }
  static Vector add_sums(Vector a, Vector b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(bits_of(a), bits_of(b)));
  }
};

#include "cpu/avx512/pack_quads.inl"
#include "cpu/avx512/quarters.inl"
//
#include "cpu/avx512/store_quads.inl"

/// What makes a signed byte an unsigned one, 128 too large.
constexpr int kUnsigned = 0x80;

/// 128 times the sum of `count` weights is added to the lanes of `sum`.
inline __m512i add_weights(__m512i sum, const std::int8_t* weights, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += 64) {
    const std::int64_t left = count - i;
    const __mmask64 live =
        left >= 64 ? ~__mmask64{0} : (__mmask64{1} << static_cast<unsigned>(left)) - 1u;
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128),  // 128, unsigned
                              _mm512_maskz_loadu_epi8(live, weights + i));
  }
  return sum;
}

}  // namespace

namespace gossamer::cpu {

constinit const KcsrFunctions avx512vnni_spmm_quads = {
    kLanes,
    pack_quads<kUnsigned>,
    {add_units<QuadUnit, 1>, add_units<QuadUnit, 2>, add_units<QuadUnit, 3>, add_units<QuadUnit, 4>,
     add_units<QuadUnit, 6>, add_units<QuadUnit, 8>},
    store_quads,
    nullptr,
    nullptr,
    {},
    4};

constinit const KcsrFunctions avx512vnni_spmm_rowquads = with_row_pairs<QuadUnit>(
    {kLanes, pack_quads<kUnsigned>, {}, store_quads, nullptr, nullptr, {}, 4});

constinit const KcsrFunctions avx512vnni_spmm_block_quads = {
    kLanes,
    pack_quads<kUnsigned>,
    {add_blocks<QuadUnit, 1>, add_blocks<QuadUnit, 2>, add_blocks<QuadUnit, 3>,
     add_blocks<QuadUnit, 4>, add_blocks<QuadUnit, 6>, add_blocks<QuadUnit, 8>},
    store_quads,
    nullptr,
    nullptr,
    {},
    4};

void avx512vnni_bitmask_quads(const BitmaskUnitTask& task) {
  constexpr std::uint64_t kFirstOfFour = 0x1111111111111111u;
  const __m128i first = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const std::int64_t row_bytes = (task.in + 7) / 8;
  const std::int64_t block_bytes = task.block / 8;
  const auto* values = static_cast<const std::int8_t*>(task.values);
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::uint8_t* bits = task.bits + row * row_bytes;
    std::uint32_t* segment = task.segments + row;
    __m512i sum = _mm512_setzero_si512();
    for (std::int64_t begin = 0; begin < row_bytes; begin += block_bytes) {
      *segment = static_cast<std::uint32_t>(count);
      segment += task.rows;
      const std::int64_t left = row_bytes - begin;
      const std::int64_t bytes = left < block_bytes ? left : block_bytes;
      __m128i columns = first;
      for (std::int64_t i = 0; i < bytes; i += 8) {
        const auto kept = load_bits<std::uint64_t>(bits + begin + i, bytes - i);
        const __m512i weights = expand_bytes(kept, _mm512_loadu_si512(values));
        values += _mm_popcnt_u64(kept);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), weights);  // 128 unsigned
        const std::uint64_t any = kept | kept >> 1 | kept >> 2 | kept >> 3;
        const auto live = static_cast<__mmask16>(_pext_u64(any, kFirstOfFour));
        _mm512_storeu_si512(task.units + count, compress_doublewords(live, weights));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(task.cols + count),
                         compress_sixteen_bytes(live, columns));
        count += _mm_popcnt_u32(live);
        columns = _mm_add_epi8(columns, _mm_set1_epi8(16));
      }
    }
    *segment = static_cast<std::uint32_t>(count);
    task.corrections[row] = _mm512_reduce_add_epi32(sum);
  }
}

void avx512vnni_block_sums(const BlockSumsTask& task) {
  const std::int64_t block_size = task.block_rows * task.block_cols;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::int64_t* offsets = task.offsets + row / task.block_rows;
    const std::int8_t* values = task.values + row % task.block_rows * task.block_cols;
    __m512i sum = _mm512_setzero_si512();
    if (task.block_rows == 1) {  // the blocks of a row follow each other
      sum = add_weights(sum, values + offsets[0] * block_size,
                        (offsets[1] - offsets[0]) * block_size);
    } else {
      for (std::int64_t block = offsets[0]; block < offsets[1]; ++block) {
        sum = add_weights(sum, values + block * block_size, task.block_cols);
      }
    }
    task.corrections[row] = _mm512_reduce_add_epi32(sum);
  }
}

}  // namespace gossamer::cpu
