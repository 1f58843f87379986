// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/finish_task.h"

namespace gossamer::cpu {

inline constexpr std::int64_t kDecodeTokens = 8;
/// Columns that X is padded to: the widest step of any instruction set.
inline constexpr std::int64_t kDecodePadding = 64;

/// sums[t][row] = Σ x[t][k]·w[row][k] over the kept k of some rows of a bitmask weight, at most
/// kDecodeTokens tokens and, in quantized calls, one more. Plain data: instruction-set folders
/// include it.
struct BitmaskDecodeTask {
  const std::uint8_t* bits;  ///< of the first row
  std::int64_t row_bytes;
  const void* values;           ///< of the whole weight
  const std::int64_t* offsets;  ///< [rows + 1] into values
  std::int64_t rows;
  std::int64_t in;
  /// [tokens][x_stride] in the type that the function takes, zeros from `in` to the next multiple
  /// of kDecodePadding.
  const void* x;
  std::int64_t x_stride;
  std::int64_t tokens;
  bool x_is_finite;  ///< no NaN and no infinity in X: what is pruned may be multiplied by zero
  float* sums;
  std::int64_t sums_stride;
};

/// What the driver needs of an instruction set and an element type.
struct BitmaskDecodeFunctions {
  void (*multiply)(const BitmaskDecodeTask&);
  /// float32 of `count` elements.
  void (*widen)(const void* from, std::int64_t count, float* to);
  /// Whether all of `count` elements are finite.
  bool (*is_finite)(const void* from, std::int64_t count);
  void (*finish)(const FinishTask&);
  bool takes_elements;  ///< X as it is; otherwise widened to float32
  /// Quantized calls, where it is not null: `multiply` takes inputs plus 128 and one token more,
  /// all 128, whose sums are the others' corrections; sums are 32-bit integers until they are here.
  void (*dequantize)(const DequantizeTask&);
};

extern const BitmaskDecodeFunctions avx2_linear_bitmask_f32;
extern const BitmaskDecodeFunctions avx2_linear_bitmask_bf16;
extern const BitmaskDecodeFunctions avx2_linear_bitmask_f16;
extern const BitmaskDecodeFunctions avx512_linear_bitmask_f32;
extern const BitmaskDecodeFunctions avx512_linear_bitmask_bf16;
extern const BitmaskDecodeFunctions avx512_linear_bitmask_f16;
extern const BitmaskDecodeFunctions avx512bf16_linear_bitmask_bf16;
extern const BitmaskDecodeFunctions avx512vnni_linear_bitmask_int8;

}  // namespace gossamer::cpu
