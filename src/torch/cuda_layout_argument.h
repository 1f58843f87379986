// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/nm24_tile.h"
#include "cuda/linear_sp24.h"
#include "torch/cuda_bridge.h"

namespace gossamer::door::cuda_ops {

// The argument `layout` carries more than the layout's number, because the header is on the GPU
// (python/gossamer/_weight_facts.py puts it together). Zeros where the caller knows none of it.
//
//    6, 7     the dtype of the result where that is not x's: bfloat16, float16, float32
//    8 .. 14  a bit for each bucket of kCudaBucketEnds that the plan runs dense
//   15        the inputs are told: modulo 128 in the next seven bits; tiles are padded, so that the
//             bytes alone do not tell 60 inputs from 64
//   23, 24    of a quantized weight: its values are float8, their sums are to be accurate
//   25 .. 27  for the buckets of 33 to 2048 tokens that are said to run dense: the lower half does,
//             the upper is packed all the same
//   28, 29    for those of 129 to 2048 tokens, likewise: the first eighth of each half runs dense,
//             the rest is packed all the same, in the lower half where the bit above does not say
//             otherwise
//   30 .. 59  five bits for each bucket but the first, which shares those of the second: the row of
//             the kernel table that was the fastest there (LinearSp24Args::tuned_row), 0 where the
//             cost model chooses
//   60        the weight is a stack of matrices
//   61, 62    which table those rows are counted in (linear_sp24_table)
inline constexpr int kResultShift = 6;
inline constexpr int kDenseShift = 8;
inline constexpr int kInputsToldShift = 15;
inline constexpr int kInputsShift = 16;
inline constexpr int kInputsBits = 7;
inline constexpr int kFloat8Shift = 23;
inline constexpr int kAccurateShift = 24;
inline constexpr int kUpperPackedShift = 25;
/// The header's buckets, 2–8 tokens in one: tiles hold eight tokens, and the argument 63 bits.
inline constexpr std::array<std::int64_t, 6> kCudaBucketEnds{1, 8, 32, 128, 512, 2048};
inline constexpr int kCudaBuckets = 7;
inline constexpr int kFirstHalvedBucket = 3;
inline constexpr int kHalvedBuckets = 3;
inline constexpr int kEighthsDenseShift = 28;
inline constexpr int kEighthsBucket = 4;
inline constexpr int kRowShift = 25;
inline constexpr int kRowBits = 5;
static_assert(kUpperPackedShift + kHalvedBuckets <= kEighthsDenseShift);
static_assert(kEighthsDenseShift + kHalvedBuckets - 1 <= kRowShift + kRowBits);
inline constexpr int kStackShift = 60;
inline constexpr int kTableShift = 61;
static_assert(kDenseShift + kCudaBuckets <= kInputsToldShift);
static_assert(kRowShift + kRowBits * kCudaBuckets <= kStackShift);
static_assert(cuda::kMostTunedRows < 1 << kRowBits && cuda::kSp24Tables <= 1 << (63 - kTableShift));

inline bool has_bit(std::int64_t argument, int shift) { return (argument >> shift & 1) != 0; }

inline int bits_of(std::int64_t argument, int shift, int bits) {
  return static_cast<int>(argument >> shift & ((std::int64_t{1} << bits) - 1));
}

inline DType result_dtype(std::int64_t argument, DType of_x) {
  constexpr std::array kTypes{DType::kBFloat16, DType::kFloat16, DType::kFloat32};  // 1, 2, 3
  const int number = bits_of(argument, kResultShift, kDenseShift - kResultShift);
  return number == 0 ? of_x : kTypes[static_cast<std::size_t>(number - 1)];
}

inline int bucket_of(std::int64_t tokens) {
  std::size_t bucket = 0;
  while (bucket < kCudaBucketEnds.size() && tokens > kCudaBucketEnds[bucket]) ++bucket;
  return static_cast<int>(bucket);
}

inline bool runs_dense(std::int64_t argument, std::int64_t tokens) {
  const int bucket = bucket_of(tokens);
  if (!has_bit(argument, kDenseShift + bucket)) return false;
  const int halved = bucket - kFirstHalvedBucket;
  if (halved < 0 || halved >= kHalvedBuckets) return true;
  const bool lower_is_dense = has_bit(argument, kUpperPackedShift + halved);
  const bool eighths_are_dense =
      bucket >= kEighthsBucket && has_bit(argument, kEighthsDenseShift + bucket - kEighthsBucket);
  if (!lower_is_dense && !eighths_are_dense) return true;
  const std::int64_t end = kCudaBucketEnds[static_cast<std::size_t>(bucket)];
  const bool is_upper = tokens * 2 > end;
  if (!is_upper && lower_is_dense) return true;
  const std::int64_t before = is_upper ? end / 2 : end / 4;
  return eighths_are_dense && (tokens - before) * 8 <= before;
}

/// The row that the plan found for so many tokens; 0 where it found none in this table.
inline int tuned_row(std::int64_t argument, std::int64_t tokens, DType dtype) {
  const int bucket = std::max(bucket_of(tokens), 1);
  const int row = bits_of(argument, kRowShift + kRowBits * bucket, kRowBits);
  if (row == 0) return 0;
  return bits_of(argument, kTableShift, 2) == cuda::linear_sp24_table(dtype) ? row : 0;
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
