// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/finish_task.h"

namespace gossamer::cpu {

inline constexpr std::int64_t kDecodeTokens = 8;
/// Columns that X is padded to: the widest step of any instruction set.
inline constexpr std::int64_t kDecodePadding = 64;

/// sums[t][row] = Σ x[t][k]·w[row][k] over the kept k of some rows, at most kDecodeTokens tokens
/// and, in quantized calls, one more. Plain data: instruction-set folders include it.
struct DecodeTask {
  const void* values;  ///< of the whole weight
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

  // The bitmask format.
  const std::uint8_t* bits;  ///< of the first row
  std::int64_t row_bytes;
  const std::int64_t* row_offsets;  ///< [rows + 1] into values

  // The bsr format.
  const std::int64_t* block_offsets;  ///< of all block rows
  const std::int32_t* block_col;
  std::int64_t block_rows;
  std::int64_t block_cols;
  std::int64_t first_row;
};

/// What the driver needs of an instruction set and an element type.
struct DecodeFunctions {
  void (*multiply)(const DecodeTask&);
  /// `count` elements of X in the type that `multiply` takes; null: as they are.
  void (*widen)(const void* from, std::int64_t count, void* to);
  std::int64_t input_bytes;  ///< of that type
  /// Whether all of `count` elements are finite; null: they always are.
  bool (*is_finite)(const void* from, std::int64_t count);
  void (*finish)(const FinishTask&);
  /// Of quantized calls, otherwise null: sums are 32-bit integers until they are here.
  void (*dequantize)(const DequantizeTask&);
  /// Quantized calls: `multiply` takes inputs plus 128 and one token more, all 128, whose sums are
  /// the others' corrections. Otherwise there are none.
  bool unsigned_inputs;
};

extern const DecodeFunctions avx2_linear_bitmask_f32;
extern const DecodeFunctions avx2_linear_bitmask_bf16;
extern const DecodeFunctions avx2_linear_bitmask_f16;
extern const DecodeFunctions avx2_linear_bitmask_int8;
extern const DecodeFunctions avx512_linear_bitmask_f32;
extern const DecodeFunctions avx512_linear_bitmask_bf16;
extern const DecodeFunctions avx512_linear_bitmask_f16;
extern const DecodeFunctions avx512bf16_linear_bitmask_bf16;
extern const DecodeFunctions avx512vnni_linear_bitmask_int8;

extern const DecodeFunctions avx2_linear_bsr_f32;
extern const DecodeFunctions avx2_linear_bsr_bf16;
extern const DecodeFunctions avx2_linear_bsr_f16;
extern const DecodeFunctions avx512_linear_bsr_f32;
extern const DecodeFunctions avx512_linear_bsr_bf16;
extern const DecodeFunctions avx512_linear_bsr_f16;
extern const DecodeFunctions avx512bf16_linear_bsr_bf16;
extern const DecodeFunctions avx512vnni_linear_bsr_int8;

}  // namespace gossamer::cpu
