// SPDX-License-Identifier: BSD-3-Clause
#include "convert/nibbles.h"

#include <bit>

namespace gossamer::detail {
namespace {

/// A group's bits with the lowest free ones added; 0 where it has more than two.
constexpr unsigned fill(unsigned group) {
  if (std::popcount(group) > 2) return 0;
  while (std::popcount(group) < 2) group |= group + 1;
  return group;
}

constexpr unsigned nibble_of(unsigned filled) {
  const int first = std::countr_zero(filled);
  const int second = std::countr_zero(filled & (filled - 1));
  return static_cast<unsigned>(first | second << 2);
}

constexpr unsigned bits_of(unsigned nibble) { return 1u << (nibble & 3) | 1u << (nibble >> 2); }

constexpr NibbleTables make_tables() {
  NibbleTables tables;
  for (unsigned byte = 0; byte < 256; ++byte) {
    tables.bits[byte] = static_cast<std::uint8_t>(bits_of(byte & 15) | bits_of(byte >> 4) << 4);
    const unsigned low = fill(byte & 15);
    const unsigned high = fill(byte >> 4);
    if (low == 0 || high == 0) continue;
    tables.filled[byte] = static_cast<std::uint8_t>(low | high << 4);
    tables.stored[byte] = static_cast<std::uint8_t>(nibble_of(low) | nibble_of(high) << 4);
  }
  return tables;
}

}  // namespace

constexpr NibbleTables kNibbleTables = make_tables();

}  // namespace gossamer::detail
