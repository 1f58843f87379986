// SPDX-License-Identifier: BSD-3-Clause
// Bits to columns, 64 bits at a time: vpcompressb of the numbers 0 to 63.
//
// The compressed bytes are stored whole and the next ones written over what is too much. The
// destination register is zeroed first, because on Zen 5 vpcompressb waits for its old value even
// where it does not use it.
//
// 5 cycles for 64 bits on a zen5-avx512 with blocks of 256 inputs (2026-11-23).
#include <immintrin.h>

#include <cstdint>

#include "cpu/kcsr_task.h"

namespace {

#include "cpu/avx512vbmi2/bits.inl"

}  // namespace

namespace gossamer::cpu {

void avx512vbmi2_bitmask_index(const BitmaskIndexTask& task) {
  alignas(64) std::uint8_t numbers[64];
  for (int i = 0; i < 64; ++i) numbers[i] = static_cast<std::uint8_t>(i);
  const __m512i first = _mm512_load_si512(numbers);
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
      __m512i columns = first;
      for (std::int64_t i = 0; i < count; i += 8) {
        const auto word = load_bits<std::uint64_t>(bits + begin + i, count - i);
        _mm512_storeu_si512(to, compress_bytes(static_cast<__mmask64>(word), columns));
        to += _mm_popcnt_u64(word);
        columns = _mm512_add_epi8(columns, _mm512_set1_epi8(64));
      }
    }
    *segment = static_cast<std::uint32_t>(to - task.cols);
  }
}

}  // namespace gossamer::cpu
