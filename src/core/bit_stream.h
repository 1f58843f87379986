// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

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

}  // namespace gossamer::detail
