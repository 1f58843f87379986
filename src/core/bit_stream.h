// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "core/layouts.h"

// The bit streams of N:M indices: the first bit is the lowest of the first byte.
namespace gossamer::detail {

/// `count` bits (at most 64) from bit `at`.
inline std::uint64_t read_bits(const std::uint8_t* stream, std::int64_t at, int count) {
  std::uint64_t result = 0;
  for (int done = 0; done < count;) {
    const std::int64_t bit = at + done;
    const int shift = static_cast<int>(bit % 8);
    const int take = count - done < 8 - shift ? count - done : 8 - shift;
    const std::uint64_t part =
        (static_cast<std::uint64_t>(stream[bit / 8]) >> shift) & ((1ull << take) - 1);
    result |= part << done;
    done += take;
  }
  return result;
}

/// Sets `count` bits (at most 64) from bit `at` of a stream that is zero there.
inline void write_bits(std::uint8_t* stream, std::int64_t at, int count, std::uint64_t value) {
  for (int done = 0; done < count;) {
    const std::int64_t bit = at + done;
    const int shift = static_cast<int>(bit % 8);
    const int take = count - done < 8 - shift ? count - done : 8 - shift;
    const std::uint64_t part = (value >> done) & ((1ull << take) - 1);
    stream[bit / 8] = static_cast<std::uint8_t>(stream[bit / 8] | (part << shift));
    done += take;
  }
}

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

}  // namespace gossamer::detail
