// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"
#include "gossamer/packed_weight.h"

namespace gossamer::cpu {

/// Whole blocks that together have about `wanted` inputs.
inline std::int64_t tile_inputs(std::int64_t wanted, std::int64_t block_cols) {
  return std::max(wanted / block_cols, std::int64_t{1}) * block_cols;
}

/// One batch of a packed weight.
struct BlockSource {
  const std::byte* values;
  const std::int64_t* row_offsets;  ///< [block rows + 1]
  const std::int32_t* cols;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block_rows;
  std::int64_t block_cols;
  std::int64_t value_bytes;
  std::int64_t block;
  std::int64_t block_count;
  std::int64_t first_block = 0;  ///< of the indexed rows
  std::int64_t indexed = 0;      ///< block rows
  const std::uint32_t* segments = nullptr;

  BlockSource(const PackedView& packed, std::int64_t batch, std::int64_t wanted_inputs)
      : values(packed.array(detail::BsrArrays::kValues)),
        cols(packed.array<std::int32_t>(detail::BsrArrays::kBlockCols)),
        out(packed.out()),
        in(packed.in()),
        block_rows(packed.header().block_rows),
        block_cols(packed.header().block_cols),
        value_bytes(dtype_bytes(packed.dtype())),
        block(tile_inputs(wanted_inputs, block_cols)),
        block_count(detail::ceil_div(in, block)) {
    row_offsets = packed.array<std::int64_t>(detail::BsrArrays::kBlockRowOffsets) +
                  batch * (detail::ceil_div(out, block_rows) + 1);
  }

  /// The first row of part `part` of `parts` with about equal blocks, at a block row.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    if (part == 0 || part == parts) return part == 0 ? 0 : out;
    const std::int64_t count = detail::ceil_div(out, block_rows);
    const std::int64_t target =
        row_offsets[0] + (row_offsets[count] - row_offsets[0]) * part / parts;
    const auto at = std::lower_bound(row_offsets, row_offsets + count, target);
    return std::min((at - row_offsets) * block_rows, out);
  }

  /// Whole block rows, or what is left of the last: sums are computed for whole ones.
  std::int64_t rows_at_once(std::int64_t, std::int64_t wanted) const {
    return wanted < block_rows ? wanted : wanted / block_rows * block_rows;
  }

  std::int64_t scratch_bytes(std::int64_t, std::int64_t rows) const {
    return (block_count + 1) * detail::ceil_div(rows, block_rows) * 4;
  }

  void index(std::int64_t row, std::int64_t rows, std::byte* memory) {
    auto* segment = reinterpret_cast<std::uint32_t*>(memory);
    const std::int64_t first = row / block_rows;
    const std::int64_t blocks_per_tile = block / block_cols;
    indexed = detail::ceil_div(rows, block_rows);
    first_block = row_offsets[first];
    segments = segment;
    for (std::int64_t r = 0; r < indexed; ++r) {
      std::int64_t i = row_offsets[first + r];
      const std::int64_t end = row_offsets[first + r + 1];
      for (std::int64_t k = 0; k <= block_count; ++k) {
        while (i < end && cols[i] < k * blocks_per_tile) ++i;
        segment[k * indexed + r] = static_cast<std::uint32_t>(i - first_block);
      }
    }
  }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task{};
    task.values = values + first_block * block_rows * block_cols * value_bytes;
    task.block_col = cols + first_block;
    task.begins = segments + k * indexed;
    task.ends = task.begins + indexed;
    task.block_rows = block_rows;
    task.block_cols = block_cols;
    task.first_input = k * block;
    return task;
  }
};

}  // namespace gossamer::cpu
