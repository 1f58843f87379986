// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstdint>

// 2:4 groups as the format `nm` stores them (a nibble i0 | i1 << 2 a group, low nibble first) and
// as bits, two groups a byte either way.
namespace gossamer::detail {

struct NibbleTables {
  /// Of eight mask bits: the stored byte; 0, which no pair of groups has, where one keeps more than
  /// two.
  std::array<std::uint8_t, 256> stored{};
  /// Of eight mask bits: the same with the lowest free ones added until a group has two.
  std::array<std::uint8_t, 256> filled{};
  /// Of a stored byte: the bits.
  std::array<std::uint8_t, 256> bits{};
};

extern const NibbleTables kNibbleTables;

}  // namespace gossamer::detail
