// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/bit_stream.h"
#include "core/fail.h"
#include "core/layouts.h"

// One group of M columns of an N:M row: which are kept, and how that is stored.
namespace gossamer::detail {

/// The kept positions of group `group` of a row as bits, whichever way they are stored.
inline std::uint64_t nm_group_mask(const NmShape& shape, const std::uint8_t* row,
                                   std::int64_t group) {
  const std::uint64_t code = read_bits(row, group * shape.group_bits, shape.group_bits);
  if (shape.is_mask) return code;
  const std::uint64_t low = (1ull << shape.position_bits) - 1;
  std::uint64_t mask = 0;
  for (int i = 0; i < static_cast<int>(shape.n); ++i) {
    mask |= 1ull << ((code >> (i * shape.position_bits)) & low);
  }
  return mask;
}

/// What is stored for a group whose kept positions are `mask` (exactly N bits).
inline std::uint64_t nm_group_code(const NmShape& shape, std::uint64_t mask) {
  if (shape.is_mask) return mask;
  std::uint64_t code = 0;
  for (int i = 0; mask != 0; ++i, mask &= mask - 1) {
    code |= static_cast<std::uint64_t>(std::countr_zero(mask)) << (i * shape.position_bits);
  }
  return code;
}

/// The kept positions of group `group` of a row of mask bytes as bits, the lowest free ones added
/// until there are N, past the last column if need be. Throws Error(kPatternViolation) where more
/// are kept.
inline std::uint64_t nm_filled_group(const NmShape& shape, std::int64_t in,
                                     const std::uint8_t* mask, std::int64_t group,
                                     std::int64_t row) {
  const std::int64_t first = group * shape.m;
  const std::int64_t width = std::min(shape.m, in - first);
  std::uint64_t bits = 0;
  for (std::int64_t i = 0; i < width; ++i) {
    bits |= static_cast<std::uint64_t>(mask[first + i]) << i;
  }
  const int kept = std::popcount(bits);
  if (kept > shape.n) {
    fail(ErrorCode::kPatternViolation, "row {}, columns {}–{}: {} kept, {}:{} allows {}", row,
         first, first + width - 1, kept, shape.n, shape.m, shape.n);
  }
  for (std::int64_t i = kept; i < shape.n; ++i) bits |= bits + 1;
  return bits;
}

}  // namespace gossamer::detail
