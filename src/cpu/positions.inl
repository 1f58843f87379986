// SPDX-License-Identifier: BSD-3-Clause
// Where the bits of a byte are. Included inside an anonymous namespace.

/// The positions of the set bits of a byte, ascending, one a byte.
struct PositionTable {
  std::uint64_t of[256];
};

constexpr PositionTable make_positions() {
  PositionTable table{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    int count = 0;
    for (unsigned bit = 0; bit < 8; ++bit) {
      if ((byte >> bit & 1u) != 0) {
        table.of[byte] |= std::uint64_t{bit} << (8 * count++);
      }
    }
  }
  return table;
}

constexpr PositionTable kPositions = make_positions();
