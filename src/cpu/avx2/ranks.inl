// SPDX-License-Identifier: BSD-3-Clause
// For a byte of bits eight bytes: at a set bit its rank among the set bits with the sign bit of
// `kept`, elsewhere `pruned`. Included inside an anonymous namespace.

struct RankTable {
  std::uint64_t of[256];
};

constexpr RankTable make_ranks(std::uint64_t kept, std::uint64_t pruned) {
  RankTable table{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::uint64_t rank = 0;
    for (unsigned bit = 0; bit < 8; ++bit) {
      const bool set = (byte >> bit & 1u) != 0;
      table.of[byte] |= (set ? kept + rank++ : pruned) << (8 * bit);
    }
  }
  return table;
}
