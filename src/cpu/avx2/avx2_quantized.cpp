// SPDX-License-Identifier: BSD-3-Clause
// Y = act(scales · X·Wᵀ + bias + residual), W in the bitmask format, int8, AVX2: a few tokens, and
// K-blocks for many.
//
//   two weights of 16 bits  ·  two inputs of 16 bits  -- vpmaddwd, exact, added in 32 bits
//
// A byte of bits is a line of a table: pshufb puts the next values at the places of the set bits
// and zeros elsewhere. vpmaddubsw would take bytes, but its sums of two products saturate.
//
// 1024×1024, one thread of a zen5-avx512 (2026-11-23): at 128 tokens 205 and 463 dense-equivalent
// GOP/s at 50 and 90 %; at one token 21 dense-equivalent GB/s. Pairs are read off the bits sixteen
// at a time by permutes: 768×768 with 32 tokens at 50, 70 and 90 % takes one thread of an
// emeraldrapids-avx2 469, 371 and 224 µs; a pair at a time 630, 537 and 359 (2026-11-30).
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/decode_task.h"
#include "cpu/kcsr_task.h"

namespace {

#include "cpu/avx2/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx2/transpose.inl"
#include "cpu/spmm_kcsr.inl"

#include "cpu/avx2/ranks.inl"
constexpr RankTable kRanks = make_ranks(0, 0x80);  // pshufb takes 0x80 for zero

#include "cpu/positions.inl"

/// For a byte of bits four bits: which of its pairs have one.
struct PairTable {
  std::uint8_t of[256];
};
constexpr PairTable make_pairs() {
  PairTable table{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned p = 0; p < 4; ++p) {
      if ((byte >> (2 * p) & 3u) != 0) table.of[byte] |= static_cast<std::uint8_t>(1u << p);
    }
  }
  return table;
}
constexpr PairTable kPairs = make_pairs();

/// Eight weights as bytes, in the lower half.
inline __m128i expand(const std::int8_t* values, unsigned bits) {
  const __m128i ranks = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kRanks.of + bits));
  return _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values)), ranks);
}

inline __m256i bits_of(Vector v) { return _mm256_castps_si256(v); }
inline Vector typed(__m256i v) { return _mm256_castsi256_ps(v); }

// ---- A few tokens ----

constexpr int kMaxSums = 12;

#include "cpu/avx2/totals.inl"

struct Step {
  using Value = std::int8_t;
  using Input = std::int16_t;
  using Mask = std::uint32_t;
  using Weights = __m256i;
  using Sum = __m256i;
  static constexpr std::int64_t kColumns = 16;
  static constexpr int kMaxTokens = 8;

  static Mask load_mask(const std::uint8_t* bits) {
    std::uint16_t word;
    __builtin_memcpy(&word, bits, sizeof(word));
    return word;
  }
  static Mask load_mask(const std::uint8_t* bits, std::int64_t count) {
    return bits[0] | static_cast<std::uint32_t>(count > 8 ? bits[1] : 0) << 8;
  }
  static int count(Mask mask) { return __builtin_popcount(mask); }
  static Weights expand(const Value* values, Mask mask) {
    const __m128i low = ::expand(values, mask & 0xff);
    const __m128i high = ::expand(values + __builtin_popcount(mask & 0xff), mask >> 8);
    return _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(low, high));
  }
  static __m256i load_input(const std::int16_t* x) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  }
  static Sum multiply_add(Weights weights, __m256i inputs, Mask, Sum sum) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, inputs));
  }
  static Sum zero_sum() { return _mm256_setzero_si256(); }
  static Sum add_sums(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  /// Integers in the bits of floats.
  template <int N>
  static Vector totals(const Sum (&sums)[N]) {
    Vector floats[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) floats[i] = typed(sums[i]);
    return lane_totals(
        floats, [](Vector a, Vector b) { return typed(_mm256_add_epi32(bits_of(a), bits_of(b))); });
  }
};

#include "cpu/linear_bitmask.inl"

void widen_to_16(const void* from, std::int64_t count, void* memory) {
  const auto* x = static_cast<const std::int8_t*>(from);
  auto* to = static_cast<std::int16_t*>(memory);
  for (std::int64_t i = 0; i < count; ++i) to[i] = x[i];
}

void dequantize(const gossamer::cpu::DequantizeTask& task) {
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    float* sums = task.sums + t * task.sums_stride;
    const Vector x_scale = repeat(task.x_scale[t]);
    for (std::int64_t row = 0; row < task.rows; row += kLanes) {
      const std::int64_t rows = task.rows - row;
      const Vector integers = Float32::load_first(sums + row, rows);
      Vector result = times(_mm256_cvtepi32_ps(bits_of(integers)), x_scale);
      if (task.weight_scale != nullptr) {
        result = times(result, Float32::load_first(task.weight_scale + row, rows));
      }
      Float32::store_first(sums + row, result, rows);
    }
  }
}

// ---- Many tokens ----

/// Two neighbouring inputs in 16 bits each.
struct PairUnit {
  using Type = std::uint32_t;
  static constexpr std::int64_t kInputs = 2;
  static Vector broadcast(const std::uint32_t* p) {
    return typed(_mm256_set1_epi32(static_cast<std::int32_t>(*p)));
  }
  static Vector multiply_add(Vector weights, Vector inputs, Vector sum) {
    return add_sums(sum, typed(_mm256_madd_epi16(bits_of(weights), bits_of(inputs))));
  }
  static Vector add_sums(Vector a, Vector b) {
    return typed(_mm256_add_epi32(bits_of(a), bits_of(b)));
  }
};

/// Eight pairs of a row of X in 16 bits, zeros behind the last of `columns` inputs.
inline Vector load_eight_pairs(const std::int8_t* x, std::int64_t columns) {
  if (columns >= 16) {
    return typed(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
  }
  alignas(16) std::int8_t all[16] = {};
  for (std::int64_t i = 0; i < columns; ++i) all[i] = x[i];
  return typed(_mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(all))));
}

bool pack_pairs(const gossamer::cpu::KcsrPackTask& task) {
  const auto* x = static_cast<const std::int8_t*>(task.x);
  for (std::int64_t t = 0; t < task.lanes; t += 8) {
    const std::int64_t tokens = task.tokens - t;
    for (std::int64_t k = 0; 2 * k < task.columns; k += 8) {
      __m256 r[8];
      for (int j = 0; j < 8; ++j) {
        r[j] = j < tokens
                   ? load_eight_pairs(x + (t + j) * task.x_stride + 2 * k, task.columns - 2 * k)
                   : zero();
      }
      transpose_8x8(r);
      for (int j = 0; j < 8; ++j) store(task.tile + (k + j) * task.lanes + t, r[j]);
    }
  }
  return true;
}

void store_pairs(const gossamer::cpu::KcsrStoreTask& task) {
  store_transposed(task, [&](float* sums, std::int64_t stride, std::int64_t row, std::int64_t rows,
                             std::int64_t token) {
    const std::int64_t left = task.out.tokens - token;
    dequantize({sums, stride, left < 8 ? left : 8, rows, nullptr, task.x_scale + token,
                task.weight_scale == nullptr ? nullptr : task.weight_scale + row});
    finish<Float32>(part_of<Float32>(task.out, sums, stride, row, rows, token, 8));
  });
}

}  // namespace

namespace gossamer::cpu {

constinit const DecodeFunctions avx2_linear_bitmask_int8 = {
    decode<Step>, widen_to_16, 2, nullptr, finish<Float32>, dequantize, false};

constinit const KcsrFunctions avx2_spmm_int8_pairs = {
    kLanes,
    pack_pairs,
    {add_units<PairUnit, 1>, add_units<PairUnit, 2>, add_units<PairUnit, 3>, add_units<PairUnit, 4>,
     add_units<PairUnit, 6>, add_units<PairUnit, 8>},
    store_pairs,
    nullptr,
    nullptr,
    {},
    2};

void avx2_bitmask_int8_pairs(const BitmaskUnitTask& task) {
  const std::int64_t row_bytes = (task.in + 7) / 8;
  const std::int64_t block_bytes = task.block / 8;
  const auto* values = static_cast<const std::int8_t*>(task.values);
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::uint8_t* bits = task.bits + row * row_bytes;
    std::uint32_t* segment = task.segments + row;
    for (std::int64_t begin = 0; begin < row_bytes; begin += block_bytes) {
      *segment = static_cast<std::uint32_t>(count);
      segment += task.rows;
      const std::int64_t left = row_bytes - begin;
      const std::int64_t bytes = left < block_bytes ? left : block_bytes;
      for (std::int64_t i = 0; i < bytes; i += 2) {
        const unsigned low = bits[begin + i];
        const unsigned high = i + 1 < bytes ? bits[begin + i + 1] : 0u;
        const __m128i first = expand(values, low);
        values += __builtin_popcount(low);
        const __m128i second = expand(values, high);
        values += __builtin_popcount(high);
        const __m256i pairs = _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(first, second));
        const unsigned kept = kPairs.of[low] | static_cast<unsigned>(kPairs.of[high]) << 4;
        // All eight are written; those behind the kept ones are written over by the next.
        const std::uint64_t places = kPositions.of[kept];
        const __m128i order = _mm_cvtsi64_si128(static_cast<std::int64_t>(places));
        const __m256i sorted = _mm256_permutevar8x32_epi32(pairs, _mm256_cvtepu8_epi32(order));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(task.units + count), sorted);
        const std::uint64_t cols =
            places + static_cast<std::uint64_t>(4 * i) * 0x0101010101010101ull;
        __builtin_memcpy(task.cols + count, &cols, sizeof(cols));
        count += __builtin_popcount(kept);
      }
    }
    *segment = static_cast<std::uint32_t>(count);
  }
}

}  // namespace gossamer::cpu
