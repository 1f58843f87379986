// SPDX-License-Identifier: BSD-3-Clause
#include "core/row_pairs.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/layouts.h"

namespace gossamer::detail {
namespace {

/// Row pairs, of single inputs and of units of four.
class RowPairsSource final : public PackedSource {
 public:
  explicit RowPairsSource(const PackedView& p)
      : PackedSource(p),
        block_(row_pairs_block(p.layout())),
        unit_(row_pairs_unit(p.layout())),
        blocks_(ceil_div(p.in(), block_)),
        panels_(ceil_div(p.out(), kRowPairsPanel)) {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    const std::int64_t panel = row / kRowPairsPanel;
    const std::int64_t rows = std::min(kRowPairsPanel, out() - panel * kRowPairsPanel);
    const auto* segment = packed().array<std::int64_t>(RowPairsArrays::kSegments) +
                          (batch * panels_ + panel) * blocks_ * RowPairsSegment::kCount;
    std::int64_t place = (batch * out() + panel * kRowPairsPanel) * blocks_;
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < blocks_; ++k, place += rows, segment += RowPairsSegment::kCount) {
      count += block_entries(segment, place, row % kRowPairsPanel, static_cast<int>(k * block_),
                             cols + count, values, count);
    }
    return count;
  }

 private:
  /// Where a unit's values lie, the first of them, and which of its inputs are kept.
  struct Unit {
    std::int64_t value = -1;
    unsigned mask = 1;
  };
  using Units = std::array<Unit, 256>;  ///< by column: the order in which they lie is not theirs

  /// Of one block, whose places begin at `place`.
  std::int64_t block_entries(const std::int64_t* segment, std::int64_t place, std::int64_t row,
                             std::int32_t first_col, std::int32_t* cols, std::byte* values,
                             std::int64_t at) const {
    const auto* rows = packed().array<std::uint8_t>(RowPairsArrays::kRows) + place;
    const std::uint8_t* counts = row_pairs_counts(packed()) + place;
    const auto* stored = packed().array<std::uint8_t>(RowPairsArrays::kCols);
    std::int64_t value = segment[RowPairsSegment::kValue];
    std::int64_t col = segment[RowPairsSegment::kCol];
    const std::int64_t paired = 2 * segment[RowPairsSegment::kPairs];
    std::int64_t i = 0;
    for (; i < paired && rows[i] != row && rows[i + 1] != row; i += 2) {
      value += 2 * (std::int64_t{counts[i]} + counts[i + 1]);
      col += std::int64_t{counts[i]} + 2 * std::int64_t{counts[i + 1]};
    }
    Units units{};
    const auto note = [&](std::int64_t at_col, std::int64_t at_value, bool high) {
      units[stored[at_col]] = {at_value, mask_at(at_col, high)};
    };
    if (i < paired) {
      const std::int64_t half = rows[i] == row ? 0 : 1;
      for (std::int64_t s = 0; s < counts[i]; ++s, value += 2, ++col) {
        note(col, value + half, half == 1);
      }
      for (std::int64_t s = 0; s < counts[i + 1]; ++s, value += 2, col += 2) {
        note(col + half, value + half, false);
      }
    } else {
      for (; rows[i] != row; ++i) {
        value += counts[i];
        col += counts[i];
      }
      for (std::int64_t s = 0; s < counts[i]; ++s) note(col++, value++, false);
    }
    return list(units, first_col, cols, values, at);
  }

  unsigned mask_at(std::int64_t col, bool high) const {
    if (unit_ == 1) return 1;
    return packed().array<std::uint8_t>(RowPairsArrays::kMasks)[col] >> (high ? 4 : 0) & 15u;
  }

  std::int64_t list(const Units& units, std::int32_t first_col, std::int32_t* cols,
                    std::byte* values, std::int64_t at) const {
    const std::int64_t bytes = dtype_bytes(dtype());
    std::int64_t count = 0;
    for (std::int64_t c = 0; c < block_ / unit_; ++c) {
      const Unit& unit = units[static_cast<std::size_t>(c)];
      if (unit.value < 0) continue;
      for (unsigned left = unit.mask; left != 0; left &= left - 1) {
        const std::int64_t input = std::countr_zero(left);
        cols[count] = static_cast<std::int32_t>(first_col + c * unit_ + input);
        if (values != nullptr) {
          std::memcpy(
              values + (at + count) * bytes,
              packed().array(RowPairsArrays::kValues) + (unit.value * unit_ + input) * bytes,
              static_cast<std::size_t>(bytes));
        }
        ++count;
      }
    }
    return count;
  }

  std::int64_t block_;
  std::int64_t unit_;  ///< inputs of a column
  std::int64_t blocks_;
  std::int64_t panels_;
};

}  // namespace

std::unique_ptr<PackedSource> row_pairs_source(const PackedView& packed) {
  return std::make_unique<RowPairsSource>(packed);
}

PairSizes pair_sizes(const PackedHeader& header) {
  if (row_pairs_block(header.layout) == 0) return {};
  const std::int64_t bytes = dtype_bytes(header.dtype) * row_pairs_unit(header.layout);
  return {header.arrays[RowPairsArrays::kValues].bytes / bytes,
          header.arrays[RowPairsArrays::kCols].bytes};
}

}  // namespace gossamer::detail
