// SPDX-License-Identifier: BSD-3-Clause
// The columns of a bitmask's set bits by a table of bytes. Included inside an anonymous namespace,
// behind positions.inl; one translation unit of every instruction set, so that popcount is an
// instruction where it can be.

void bitmask_index(const gossamer::cpu::BitmaskIndexTask& task) {
  const std::int64_t row_bytes = (task.in + 7) / 8;
  const std::int64_t block_bytes = task.block / 8;
  std::uint8_t* to = task.cols;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::uint8_t* bits = task.bits + row * row_bytes;
    std::uint32_t* segment = task.segments + row;
    for (std::int64_t begin = 0; begin < row_bytes; begin += block_bytes) {
      *segment = static_cast<std::uint32_t>(to - task.cols);
      segment += task.rows;
      const std::int64_t left = row_bytes - begin;
      const std::int64_t count = left < block_bytes ? left : block_bytes;
      for (std::int64_t i = 0; i < count; ++i) {
        const unsigned byte = bits[begin + i];
        const std::uint64_t eight =
            kPositions.of[byte] + static_cast<std::uint64_t>(8 * i) * 0x0101010101010101ull;
        __builtin_memcpy(to, &eight, sizeof(eight));
        to += __builtin_popcount(byte);
      }
    }
    *segment = static_cast<std::uint32_t>(to - task.cols);
  }
}
