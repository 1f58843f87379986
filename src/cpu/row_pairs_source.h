// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"
#include "cpu/row_pairs_task.h"

namespace gossamer::cpu {

/// One batch of a weight in a layout of row pairs, as spmm_driver.h wants it. Rows are cut at
/// panels only.
struct RowPairsSource {
  static constexpr std::int64_t kRowStep = detail::kRowPairsPanel;
  const std::byte* values;
  const std::uint8_t* cols;
  const std::uint8_t* rows;
  const std::uint8_t* counts;
  const std::int64_t* segments;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;
  std::int64_t batch_end;  ///< of its units, in `values`
  std::int64_t first_row = 0;

  RowPairsSource(const PackedView& packed, std::int64_t batch)
      : values(packed.array(detail::RowPairsArrays::kValues)),
        cols(packed.array<std::uint8_t>(detail::RowPairsArrays::kCols)),
        out(packed.out()),
        in(packed.in()),
        block(detail::row_pairs_block(packed.layout())),
        block_count(detail::ceil_div(in, block)) {
    const std::int64_t places = batch * out * block_count;
    rows = packed.array<std::uint8_t>(detail::RowPairsArrays::kRows) + places;
    counts = detail::row_pairs_counts(packed) + places;
    const std::int64_t batch_segments = detail::ceil_div(out, kPanel) * block_count * kSegment;
    segments =
        packed.array<std::int64_t>(detail::RowPairsArrays::kSegments) + batch * batch_segments;
    batch_end = batch + 1 == packed.batch() || batch_segments == 0
                    ? detail::pair_sizes(packed.header()).units
                    : segments[batch_segments + detail::RowPairsSegment::kValue];
  }

  /// Of the panel that begins at `row`.
  std::int64_t first_value(std::int64_t row) const {
    return row >= out
               ? batch_end
               : segments[row / kPanel * block_count * kSegment + detail::RowPairsSegment::kValue];
  }

  /// The first row of part `part` of `parts` with about equal units.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    if (part == 0 || part == parts || block_count == 0) return part == 0 ? 0 : out;
    const std::int64_t begin = first_value(0);
    const std::int64_t target = begin + (batch_end - begin) * part / parts;
    std::int64_t row = 0;
    while (row < out && first_value(row) < target) row += kPanel;
    // The nearer of the two boundaries around the target.
    const bool before = row > 0 && target - first_value(row - kPanel) < first_value(row) - target;
    return std::min(before ? row - kPanel : row, out);
  }

  static std::int64_t rows_at_once(std::int64_t, std::int64_t wanted) {
    return wanted < kPanel ? wanted : wanted / kPanel * kPanel;
  }
  static std::int64_t scratch_bytes(std::int64_t, std::int64_t) { return 0; }
  void index(std::int64_t row, std::int64_t, std::byte*) { first_row = row; }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task{};
    task.values = values;
    task.cols = cols;
    task.pair_segments = segments + first_row / kPanel * block_count * kSegment;
    task.pair_rows = rows + first_row * block_count;
    task.pair_counts = counts + first_row * block_count;
    task.block_index = k;
    task.block_count = block_count;
    return task;
  }

  /// Of the panel that begins at `row`; X and Y are the caller's to fill in.
  RowPairsFewTask few_task(std::int64_t row) const {
    RowPairsFewTask task{};
    task.values = reinterpret_cast<const float*>(values);
    task.cols = cols;
    task.segments = segments + row / kPanel * block_count * kSegment;
    task.rows = rows + row * block_count;
    task.counts = counts + row * block_count;
    task.block_count = block_count;
    task.in = in;
    return task;
  }

 private:
  static constexpr std::int64_t kPanel = kRowStep;
  static constexpr std::int64_t kSegment = detail::RowPairsSegment::kCount;
};

/// The same of a quantized call's units.
struct RowQuadsSource : RowPairsSource {
  const std::int32_t* all_corrections;  ///< of the batch
  const std::int32_t* corrections = nullptr;

  RowQuadsSource(const PackedView& packed, std::int64_t batch)
      : RowPairsSource(packed, batch),
        all_corrections(packed.array<std::int32_t>(detail::RowPairsArrays::kCorrections) +
                        batch * packed.out()) {}

  void index(std::int64_t row, std::int64_t count, std::byte* memory) {
    RowPairsSource::index(row, count, memory);
    corrections = all_corrections + row;
  }
};

}  // namespace gossamer::cpu
