// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) for 1 to 8 tokens, W in the bitmask format, float32, bfloat16 and
// float16, AVX-512: weights are loaded sparse and computed dense.
//
//   16 bits, kept values ──vexpandps──> 16 weights, zeros where pruned ──> multiply-add per token
//
// Few tokens are bound by the bytes of the weight: 4·d + 1/8 a position instead of 4 for float32 of
// density d. The 16-bit types are widened before they are expanded and computed in float32.
//
// Against torch's dense linear at one token, 4096×4096 float32, weights from memory, one thread of
// a zen5-avx512 (2026-11-23): 2.2x / 3.1x / 3.3x / 3.8x at 50 / 70 / 80 / 90 %.
#include <immintrin.h>

#include <cstdint>

#include "cpu/decode_task.h"

namespace {

#include "cpu/avx512/vector.inl"
//
#include "cpu/epilogue.inl"

constexpr int kMaxSums = 24;

#include "cpu/avx512/totals.inl"
//
#include "cpu/float_sums.inl"

template <typename Element>
struct Step : FloatSums {
  using Value = typename Element::Type;
  using Input = float;
  using Mask = std::uint32_t;
  using Weights = Vector;
  static constexpr std::int64_t kColumns = 16;

  static Mask load_mask(const std::uint8_t* bits) {
    std::uint16_t word;
    __builtin_memcpy(&word, bits, sizeof(word));
    return in_general_register(word);
  }
  static Mask load_mask(const std::uint8_t* bits, std::int64_t count) {
    return (bits[0] | static_cast<std::uint32_t>(count > 8 ? bits[1] : 0) << 8);
  }
  static int count(Mask mask) { return __builtin_popcount(mask); }
  /// The register is zeroed first: on Zen 5 vexpandps waits for its old value even where it does
  /// not use it.
  static Weights expand(const Value* values, Mask mask) {
    Vector weights;
    asm("vpxord %0, %0, %0\n\tvexpandps %2, %0%{%1%}%{z%}"
        : "=&v"(weights)
        : "Yk"(static_cast<__mmask16>(mask)), "v"(Element::load(values)));
    return weights;
  }
  static Vector load_input(const float* x) { return load(x); }
  static Vector multiply_add(Weights weights, Vector inputs, Mask mask, Vector sum) {
    return _mm512_mask3_fmadd_ps(weights, inputs, sum, static_cast<__mmask16>(mask));
  }
};

/// The same for finite inputs, whose products with pruned weights are zero.
template <typename Element>
struct FiniteStep : Step<Element> {
  static Vector multiply_add(Vector weights, Vector inputs, std::uint32_t, Vector sum) {
    return ::multiply_add(weights, inputs, sum);
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
constexpr int kTwoStepTokens = 8;
#include "cpu/linear_blocks.inl"

template <typename Element>
void multiply(const gossamer::cpu::DecodeTask& task) {
  task.x_is_finite ? decode<FiniteStep<Element>>(task) : decode<Step<Element>>(task);
}

}  // namespace

namespace gossamer::cpu {

constinit const DecodeFunctions avx512_linear_bitmask_f32 = {
    multiply<Float32>, nullptr, 4, is_finite<Float32>, finish<Float32>, nullptr, false};
constinit const DecodeFunctions avx512_linear_bitmask_bf16 = {
    multiply<BFloat16>, widen<BFloat16>, 4, is_finite<BFloat16>, finish<BFloat16>, nullptr, false};
constinit const DecodeFunctions avx512_linear_bitmask_f16 = {
    multiply<Float16>, widen<Float16>, 4, is_finite<Float16>, finish<Float16>, nullptr, false};

constinit const DecodeFunctions avx512_linear_bsr_f32 = {decode_blocks<BlockStep<Float32>>,
                                                         nullptr,
                                                         4,
                                                         is_finite<Float32>,
                                                         finish<Float32>,
                                                         nullptr,
                                                         false};
constinit const DecodeFunctions avx512_linear_bsr_bf16 = {decode_blocks<BlockStep<BFloat16>>,
                                                          widen<BFloat16>,
                                                          4,
                                                          is_finite<BFloat16>,
                                                          finish<BFloat16>,
                                                          nullptr,
                                                          false};
constinit const DecodeFunctions avx512_linear_bsr_f16 = {decode_blocks<BlockStep<Float16>>,
                                                         widen<Float16>,
                                                         4,
                                                         is_finite<Float16>,
                                                         finish<Float16>,
                                                         nullptr,
                                                         false};

}  // namespace gossamer::cpu
