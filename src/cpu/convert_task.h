// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer::cpu {

/// A row of a weight between dense values with a mask and kept values with bits: bit i of word j is
/// column 64·j + i, bits past the last column are zero where nothing else is said. Elements are
/// moved as raw bits; all but those of `magnitude` are a sign.
struct RowCodec {
  /// The bits of what is kept: mask bytes that are not 0, or where `mask` is null elements with a
  /// magnitude. Returns how many there are.
  std::int64_t (*mark)(const std::uint8_t* mask, const void* values, std::uint64_t magnitude,
                       std::int64_t in, std::uint64_t* bits);
  /// Writes the elements at the bits of `filled`, `count` of them, one behind the other: zero
  /// (never −0) where `kept` has no bit. `filled` holds `kept`, and may have bits past the last
  /// column.
  void (*compress)(const void* values, std::uint64_t magnitude, const std::uint64_t* kept,
                   const std::uint64_t* filled, std::int64_t in, void* to, std::int64_t count);
  /// The reverse: writes `in` elements, zero where there is no bit. 64 bytes after the last stored
  /// element are readable. With `streaming` stores go past the caches; `values` is aligned to 64
  /// bytes then.
  void (*expand)(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values,
                 bool streaming);
  /// Writes `in` mask bytes, 0 or 1; `streaming` as above.
  void (*spread)(const std::uint64_t* bits, std::int64_t in, std::uint8_t* mask, bool streaming);
  /// Of `bytes` bytes of bits, two groups of four in each: `stored` takes the positions of two kept
  /// ones as nibbles (i0 | i1 << 2), `filled` the bits with the lowest free ones added until a
  /// group has two. False where one has more.
  bool (*to_nibbles)(const std::uint8_t* bits, std::int64_t bytes, std::uint8_t* stored,
                     std::uint8_t* filled);
  /// The reverse: the bits of stored nibbles.
  void (*from_nibbles)(const std::uint8_t* stored, std::int64_t bytes, std::uint8_t* bits);
};

// For elements of 2 and 4 bytes.
RowCodec generic_row_codec(std::int64_t element_bytes);
RowCodec avx2_row_codec(std::int64_t element_bytes);
RowCodec avx512vbmi2_row_codec(std::int64_t element_bytes);

}  // namespace gossamer::cpu
