// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"

namespace gossamer::cpu {

/// One batch of a weight in a layout kcsr64, kcsr128 or kcsr256, as spmm_driver.h wants it.
struct KcsrSource {
  const std::byte* values;
  const std::uint8_t* cols;
  const std::uint32_t* segments;
  const std::int64_t* blocks;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;
  std::int64_t value_bytes;
  std::int64_t first_row = 0;

  KcsrSource(const PackedView& packed, std::int64_t batch)
      : values(packed.array(detail::KcsrArrays::kValues)),
        cols(packed.array<std::uint8_t>(detail::KcsrArrays::kCols)),
        out(packed.out()),
        in(packed.in()),
        block(detail::kcsr_block(packed.layout())),
        block_count(detail::ceil_div(in, block)),
        value_bytes(dtype_bytes(packed.dtype())) {
    segments = packed.array<std::uint32_t>(detail::KcsrArrays::kSegmentOffsets) +
               batch * block_count * (out + 1);
    blocks =
        packed.array<std::int64_t>(detail::KcsrArrays::kBlockOffsets) + batch * (block_count + 1);
  }

  /// Kept values in rows [0, row).
  std::int64_t kept_before(std::int64_t row) const {
    std::int64_t kept = 0;
    for (std::int64_t k = 0; k < block_count; ++k) kept += segments[k * (out + 1) + row];
    return kept;
  }

  /// The first row of part `part` of `parts` with about equal kept values.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    if (part == 0 || part == parts) return part == 0 ? 0 : out;
    const std::int64_t target = kept_before(out) * part / parts;
    std::int64_t low = 0;
    std::int64_t high = out;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (kept_before(middle) < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  static std::int64_t rows_at_once(std::int64_t, std::int64_t wanted) { return wanted; }
  static std::int64_t scratch_bytes(std::int64_t, std::int64_t) { return 0; }
  void index(std::int64_t row, std::int64_t, std::byte*) { first_row = row; }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task{};
    task.values = values + blocks[k] * value_bytes;
    task.cols = cols + blocks[k];
    task.begins = segments + k * (out + 1) + first_row;
    task.ends = task.begins + 1;
    return task;
  }
};

}  // namespace gossamer::cpu
