// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "core/nm24_tile.h"
#include "cuda/linear_sp24.h"
#include "torch/cuda_bridge.h"

namespace gossamer::door::cuda_ops {

// The argument `layout` carries more than the layout's number, because the header is on the GPU
// (python/gossamer/_layout_argument.py puts it together). Zeros where the caller knows none of it.
//
//    6, 7     the dtype of the result where that is not x's: bfloat16, float16, float32
//    8 .. 47  a code of four bits for each part of the token counts (kPartEnds): 15 where the
//             dense copy runs, the number of the row of the kernel table that was the fastest there
//             (LinearSp24Args::tuned_row), or 0 where the cost model chooses
//   48, 49    for the two parts from 129 to 512 and the two from 513 to 2048 tokens: the first
//             quarter of both runs dense, whatever their codes
//   50        the inputs are told: modulo 128 in the next seven bits; tiles are padded, so that the
//             bytes alone do not tell 60 inputs from 64
//   58, 59    of a quantized weight: its values are float8, their sums are to be accurate; of any
//             other: it is bfloat16, float16, which are of the same bytes
//   60        the weight is a stack of matrices
//   61, 62    which table those rows are counted in (linear_sp24_table)
inline constexpr int kResultShift = 6;
inline constexpr int kPlanShift = 8;
inline constexpr int kCodeBits = 4;
inline constexpr std::array<std::int64_t, 9> kPartEnds{8, 16, 32, 64, 128, 256, 512, 1024, 2048};
inline constexpr int kParts = 10;
inline constexpr int kDenseCode = 15;
inline constexpr int kQuartersShift = kPlanShift + kCodeBits * kParts;
inline constexpr int kFirstPair = 5;
inline constexpr int kPairs = 2;
inline constexpr int kInputsToldShift = 50;
inline constexpr int kInputsShift = 51;
inline constexpr int kInputsBits = 7;
inline constexpr int kFloat8Shift = 58;
inline constexpr int kAccurateShift = 59;
inline constexpr int kBFloat16Shift = 58;
inline constexpr int kFloat16Shift = 59;
inline constexpr int kStackShift = 60;
inline constexpr int kTableShift = 61;
static_assert(kQuartersShift + kPairs <= kInputsToldShift);
static_assert(cuda::kMostTunedRows < kDenseCode && cuda::kSp24Tables <= 1 << (63 - kTableShift));

inline bool has_bit(std::int64_t argument, int shift) { return (argument >> shift & 1) != 0; }

inline int bits_of(std::int64_t argument, int shift, int bits) {
  return static_cast<int>(argument >> shift & ((std::int64_t{1} << bits) - 1));
}

inline DType result_dtype(std::int64_t argument, DType of_x) {
  constexpr std::array kTypes{DType::kBFloat16, DType::kFloat16, DType::kFloat32};  // 1, 2, 3
  const int number = bits_of(argument, kResultShift, kPlanShift - kResultShift);
  return number == 0 ? of_x : kTypes[static_cast<std::size_t>(number - 1)];
}

inline int part_of(std::int64_t tokens) {
  std::size_t part = 0;
  while (part < kPartEnds.size() && tokens > kPartEnds[part]) ++part;
  return static_cast<int>(part);
}

inline int code_of(std::int64_t argument, int part) {
  return bits_of(argument, kPlanShift + kCodeBits * part, kCodeBits);
}

inline bool runs_dense(std::int64_t argument, std::int64_t tokens) {
  const int part = part_of(tokens);
  if (code_of(argument, part) == kDenseCode) return true;
  const int pair = (part - kFirstPair) / 2;
  if (part < kFirstPair || pair >= kPairs || !has_bit(argument, kQuartersShift + pair))
    return false;
  const std::int64_t before = kPartEnds[static_cast<std::size_t>(part - 1)];
  return (tokens - before) * 4 <= before;
}

/// The row that the plan found for so many tokens; 0 where it found none in this table.
inline int tuned_row(std::int64_t argument, std::int64_t tokens, DType dtype) {
  const int code = code_of(argument, part_of(tokens));
  if (code == 0 || code == kDenseCode) return 0;
  return bits_of(argument, kTableShift, 2) == cuda::linear_sp24_table(dtype) ? code : 0;
}

/// What x must have; nothing where the argument does not tell. The bytes of a weight do not either:
/// those of bfloat16 and float16 are as many, and so are those of float8 and int8.
inline std::optional<DType> told_dtype(std::int64_t argument, bool quantized) {
  if (quantized) {
    if (!has_bit(argument, kInputsToldShift)) return std::nullopt;
    return has_bit(argument, kFloat8Shift) ? DType::kFloat8E4M3 : DType::kInt8;
  }
  if (has_bit(argument, kBFloat16Shift)) return DType::kBFloat16;
  if (has_bit(argument, kFloat16Shift)) return DType::kFloat16;
  return std::nullopt;
}

/// The weight's inputs out of its bytes and what the argument tells of them; 0 where it tells
/// nothing, or contradicts the bytes.
inline std::int64_t told_inputs(std::int64_t argument, const Tensor& packed, std::int64_t out,
                                std::int64_t batch, int element_bytes) {
  if (!has_bit(argument, kInputsToldShift)) return 0;
  const std::int64_t tile_inputs = 128 / element_bytes;
  const std::int64_t of_a_column =
      batch * detail::nm24_row_tiles(out) * detail::nm24_tile_bytes(element_bytes);
  const std::int64_t tiles =
      (packed.numel() - static_cast<std::int64_t>(sizeof(PackedHeader))) / of_a_column;
  const std::int64_t last = bits_of(argument, kInputsShift, kInputsBits) % tile_inputs;
  return std::max<std::int64_t>(tiles - 1, 0) * tile_inputs + (last == 0 ? tile_inputs : last);
}

}  // namespace gossamer::door::cuda_ops
