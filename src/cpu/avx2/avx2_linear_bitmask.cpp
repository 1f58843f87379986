// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) for 1 to 8 tokens, W in the bitmask format, float32, bfloat16 and
// float16, AVX2: weights are loaded sparse and computed dense.
//
//   8 bits ──table──> for each place the number of its value;  8 values ──vpermps──> 8 weights
//
// Few tokens are bound by the bytes of the weight: 4·d + 1/8 a position instead of 4 for float32 of
// density d. The 16-bit types are widened before they are permuted and computed in float32.
//
// Against torch's dense linear at one token, 4096×4096, weights from memory, one thread of a
// zen5-avx512 (2026-11-23), at 50 / 70 / 80 / 90 %: float32 1.7x / 2.1x / 2.3x / 2.5x,
// bfloat16 1.5x / 1.5x / 1.7x / 1.7x (torch's uses AVX-512 there).
#include <immintrin.h>

#include <cstdint>

#include "cpu/decode_task.h"

namespace {

#include "cpu/avx2/vector.inl"
//
#include "cpu/epilogue.inl"

constexpr int kMaxSums = 12;

#include "cpu/avx2/totals.inl"
//
#include "cpu/float_sums.inl"

#include "cpu/avx2/ranks.inl"
constexpr RankTable kRanks = make_ranks(0x80, 0);

template <typename Element>
struct Step : FloatSums {
  using Value = typename Element::Type;
  using Input = float;
  using Mask = std::uint32_t;
  using Weights = Vector;
  static constexpr std::int64_t kColumns = 8;

  static Mask load_mask(const std::uint8_t* bits) { return *bits; }
  static Mask load_mask(const std::uint8_t* bits, std::int64_t) { return *bits; }
  static int count(Mask mask) { return __builtin_popcount(mask); }
  static __m256 ranks(Mask mask) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kRanks.of + mask));
    return _mm256_castsi256_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static Weights expand(const Value* values, Mask mask) {
    const __m256 rank = ranks(mask);
    const Vector moved = _mm256_permutevar8x32_ps(Element::load(values), _mm256_castps_si256(rank));
    return _mm256_blendv_ps(zero(), moved, rank);
  }
  static Vector load_input(const float* x) { return load(x); }
  static Vector multiply_add(Weights weights, Vector inputs, Mask mask, Vector sum) {
    return _mm256_fmadd_ps(weights, _mm256_blendv_ps(zero(), inputs, ranks(mask)), sum);
  }
};

/// The same for finite inputs, whose products with pruned weights are zero.
template <typename Element>
struct FiniteStep : Step<Element> {
  static Vector multiply_add(Vector weights, Vector inputs, std::uint32_t, Vector sum) {
    return _mm256_fmadd_ps(weights, inputs, sum);
  }
};

#include "cpu/linear_bitmask.inl"

/// A step of a block.
template <typename Element>
struct BlockStep : FloatSums {
  using Value = typename Element::Type;
  using Input = float;
  using Inputs = Vector;
  static constexpr std::int64_t kColumns = kLanes;

  static Vector load(const Value* values) { return Element::load(values); }
  static Vector load_first(const Value* values, std::int64_t count) {
    return Element::load_first(values, count);
  }
  static Vector load_input(const float* x) { return Float32::load(x); }
  static Vector first_inputs(const float* x, std::int64_t count) {
    return Float32::load_first(x, count);
  }
  static Vector multiply_add(Vector weights, Vector inputs, Vector sum) {
    return ::multiply_add(weights, inputs, sum);
  }
};

constexpr std::int64_t kRowsOfSums = 64;
constexpr int kTwoStepTokens = 4;
#include "cpu/linear_blocks.inl"

template <typename Element>
void multiply(const gossamer::cpu::DecodeTask& task) {
  task.x_is_finite ? decode<FiniteStep<Element>>(task) : decode<Step<Element>>(task);
}

}  // namespace

namespace gossamer::cpu {

constinit const DecodeFunctions avx2_linear_bitmask_f32 = {
    multiply<Float32>, nullptr, 4, is_finite<Float32>, finish<Float32>, nullptr, false};
constinit const DecodeFunctions avx2_linear_bitmask_bf16 = {
    multiply<BFloat16>, widen<BFloat16>, 4, is_finite<BFloat16>, finish<BFloat16>, nullptr, false};
constinit const DecodeFunctions avx2_linear_bitmask_f16 = {
    multiply<Float16>, widen<Float16>, 4, is_finite<Float16>, finish<Float16>, nullptr, false};

constinit const DecodeFunctions avx2_linear_bsr_f32 = {decode_blocks<BlockStep<Float32>>,
                                                       nullptr,
                                                       4,
                                                       is_finite<Float32>,
                                                       finish<Float32>,
                                                       nullptr,
                                                       false};
constinit const DecodeFunctions avx2_linear_bsr_bf16 = {decode_blocks<BlockStep<BFloat16>>,
                                                        widen<BFloat16>,
                                                        4,
                                                        is_finite<BFloat16>,
                                                        finish<BFloat16>,
                                                        nullptr,
                                                        false};
constinit const DecodeFunctions avx2_linear_bsr_f16 = {decode_blocks<BlockStep<Float16>>,
                                                       widen<Float16>,
                                                       4,
                                                       is_finite<Float16>,
                                                       finish<Float16>,
                                                       nullptr,
                                                       false};

}  // namespace gossamer::cpu
