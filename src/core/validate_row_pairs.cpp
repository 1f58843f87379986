// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <bit>
#include <bitset>
#include <vector>

#include "core/layouts.h"
#include "core/malformed.h"
#include "core/row_pairs.h"
#include "core/row_source.h"
#include "gossamer/packed_weight.h"

namespace gossamer::detail {
namespace {

/// A row's part of `count` columns, `step` apart, that must ascend and not be in `seen`.
void check_pair_cols(const std::uint8_t* cols, std::int64_t count, std::int64_t step,
                     std::int64_t width, std::bitset<256>& seen) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint8_t col = cols[i * step];
    if (col >= width || seen[col] || (i > 0 && col <= cols[(i - 1) * step])) {
      malformed("cols: {} at place {} of a row; columns must ascend, come once and be less than {}",
                col, i, width);
    }
    seen.set(col);
  }
}

/// How far the arrays of row pairs have been read.
struct PairPlace {
  std::int64_t value = 0;  ///< units
  std::int64_t col = 0;
  std::int64_t kept = 0;
};

/// Units of several inputs keep one at least and none past the edge, and what is not kept is zero.
/// A shared column has masks of two rows, whose values follow each other.
void check_unit_masks(const PackedView& p, std::int64_t count, bool shared, std::int64_t inputs,
                      PairPlace& at) {
  const std::int64_t unit = row_pairs_unit(p.layout());
  const auto* cols = p.array<std::uint8_t>(RowPairsArrays::kCols);
  const auto* masks = p.array<std::uint8_t>(RowPairsArrays::kMasks);
  for (std::int64_t i = 0; i < count; ++i, ++at.col) {
    const std::int64_t left = inputs - cols[at.col] * unit;
    const unsigned inside = left >= unit ? 15u : (1u << static_cast<unsigned>(left)) - 1u;
    const unsigned mask = masks[at.col];
    if (!shared && mask > 15) malformed("masks: {} of a column of one row", mask);
    for (unsigned half = 0; half < (shared ? 2u : 1u); ++half, ++at.value) {
      const unsigned own = mask >> (4 * half) & 15u;
      if (own == 0 || (own & ~inside) != 0) {
        malformed("masks: {} of column {} in a block of {} inputs", mask, cols[at.col], inputs);
      }
      for (std::int64_t k = 0; k < unit; ++k) {
        if ((own >> static_cast<unsigned>(k) & 1u) != 0) continue;
        const std::int64_t bytes = dtype_bytes(p.dtype());
        const std::byte* value = p.array(RowPairsArrays::kValues) + (at.value * unit + k) * bytes;
        if (all_zero(value, value + bytes)) continue;
        malformed("unit {}: value {} is not kept and not zero", at.value, k);
      }
      at.kept += std::popcount(own);
    }
  }
}

/// The places of one panel's block; advances `at` by what they take. `inputs`: of the block.
void check_row_pairs_block(const PackedView& p, std::int64_t place, std::int64_t rows,
                           std::int64_t pairs, std::int64_t inputs, PairPlace& at) {
  const std::int64_t unit = row_pairs_unit(p.layout());
  const std::int64_t width = ceil_div(inputs, unit);
  const PairSizes sizes = pair_sizes(p.header());
  const auto* row = p.array<std::uint8_t>(RowPairsArrays::kRows) + place;
  const std::uint8_t* counts = row_pairs_counts(p) + place;
  const auto* cols = p.array<std::uint8_t>(RowPairsArrays::kCols);
  std::bitset<256> seen_rows;
  for (std::int64_t i = 0; i < rows; ++i) {
    if (row[i] >= rows || seen_rows[row[i]]) {
      malformed("rows: {} at a place of {} rows; each row must come once", row[i], rows);
    }
    seen_rows.set(row[i]);
  }
  for (std::int64_t i = 0; i < rows;) {
    const bool is_pair = i < 2 * pairs;
    const std::int64_t shared = is_pair ? counts[i] : 0;
    const std::int64_t alone = is_pair ? counts[i + 1] : counts[i];
    const std::int64_t step = is_pair ? 2 : 1;
    if (at.value + step * (shared + alone) > sizes.units ||
        at.col + shared + step * alone > sizes.columns) {
      malformed("counts: they reach past {} units or {} columns", sizes.units, sizes.columns);
    }
    for (std::int64_t half = 0; half < step; ++half) {
      std::bitset<256> seen;
      check_pair_cols(cols + at.col, shared, 1, width, seen);
      check_pair_cols(cols + at.col + shared + half, alone, step, width, seen);
    }
    if (unit > 1) {
      check_unit_masks(p, shared, true, inputs, at);
      check_unit_masks(p, step * alone, false, inputs, at);
    } else {
      at.value += step * (shared + alone);
      at.kept += step * (shared + alone);
      at.col += shared + step * alone;
    }
    i += step;
  }
}

void check_corrections(const PackedView& p) {
  if (row_pairs_unit(p.layout()) == 1 || p.dtype() != DType::kInt8) return;
  if (p.batch() * p.out() == 0) return;  // no rows, perhaps of very many inputs
  const auto source = packed_source(p);
  const auto* corrections = p.array<std::int32_t>(RowPairsArrays::kCorrections);
  std::vector<std::int32_t> cols(static_cast<std::size_t>(p.in()));
  std::vector<std::int8_t> values(cols.size());
  for (std::int64_t row = 0; row < p.batch() * p.out(); ++row) {
    const std::int64_t count = source->entries(row / p.out(), row % p.out(), cols.data(),
                                               reinterpret_cast<std::byte*>(values.data()));
    const std::int32_t wanted = row_correction(values.data(), count);
    if (corrections[row] == wanted) continue;
    malformed("corrections: {} of row {}, its values say {}", corrections[row], row, wanted);
  }
}

}  // namespace

void validate_row_pairs(const PackedView& p) {
  const std::int64_t block = row_pairs_block(p.layout());
  const std::int64_t blocks = ceil_div(p.in(), block);
  const PairSizes sizes = pair_sizes(p.header());
  const auto* segment = p.array<std::int64_t>(RowPairsArrays::kSegments);
  std::int64_t place = 0;
  PairPlace at;
  for (std::int64_t row = 0; row < (blocks == 0 ? 0 : p.batch() * p.out());) {
    const std::int64_t rows = std::min(kRowPairsPanel, p.out() - row % p.out());
    for (std::int64_t k = 0; k < blocks; ++k, segment += RowPairsSegment::kCount, place += rows) {
      const std::int64_t pairs = segment[RowPairsSegment::kPairs];
      if (segment[RowPairsSegment::kValue] != at.value ||
          segment[RowPairsSegment::kCol] != at.col || pairs < 0 || pairs > rows / 2) {
        malformed(
            "segments: a block of {} rows begins at value {}, column {} with {} pairs; the "
            "counts say value {}, column {}",
            rows, segment[RowPairsSegment::kValue], segment[RowPairsSegment::kCol], pairs, at.value,
            at.col);
      }
      check_row_pairs_block(p, place, rows, pairs, std::min(block, p.in() - k * block), at);
    }
    row += rows;
  }
  if (at.value != sizes.units || at.col != sizes.columns || at.kept != p.kept()) {
    malformed("segments end at {} of {} units, {} of {} columns and {} of {} kept positions",
              at.value, sizes.units, at.col, sizes.columns, at.kept, p.kept());
  }
  check_corrections(p);
}

}  // namespace gossamer::detail
