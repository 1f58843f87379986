// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/decode_task.h"
#include "gossamer/packed_weight.h"

namespace gossamer::cpu {

/// Where the rows of one batch of a bitmask weight lie.
struct BitmaskRows {
  const std::uint8_t* bits;
  const std::byte* values;      ///< of all batches
  const std::int64_t* offsets;  ///< [out + 1] into values
  std::int64_t out;
  std::int64_t in;
  std::int64_t row_bytes;    ///< of the bits
  std::int64_t value_bytes;  ///< of one value

  BitmaskRows(const PackedView& packed, std::int64_t batch)
      : values(packed.array(detail::BitmaskArrays::kValues)),
        out(packed.out()),
        in(packed.in()),
        row_bytes(detail::ceil_div(packed.in(), 8)),
        value_bytes(dtype_bytes(packed.dtype())) {
    bits = packed.array<std::uint8_t>(detail::BitmaskArrays::kBitmask) + batch * out * row_bytes;
    offsets = packed.array<std::int64_t>(detail::BitmaskArrays::kRowOffsets) + batch * (out + 1);
  }

  std::int64_t kept(std::int64_t row, std::int64_t rows) const {
    return offsets[row + rows] - offsets[row];
  }

  const std::byte* row_values(std::int64_t row) const {
    return values + offsets[row] * value_bytes;
  }

  void place(std::int64_t row, DecodeTask& task) const {
    task.bits = bits + row * row_bytes;
    task.row_bytes = row_bytes;
    task.row_offsets = offsets + row;
  }

  /// The first row of part `part` of `parts` with about equal cost, where a kept value costs as
  /// much as `positions` bits.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts, std::int64_t positions) const {
    if (part == 0 || part == parts) return part == 0 ? 0 : out;
    const auto cost_before = [&](std::int64_t row) {
      return (offsets[row] - offsets[0]) * positions + row * in;
    };
    const std::int64_t target = cost_before(out) / parts * part;
    std::int64_t low = 0;
    std::int64_t high = out;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (cost_before(middle) < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

}  // namespace gossamer::cpu
