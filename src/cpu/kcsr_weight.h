// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"

// What the drivers of K-blocked CSR share: linear layers and convolutions.
namespace gossamer::cpu {

/// Sums of one block of rows: 256 KB, half an L2 of the smallest machines.
inline constexpr std::int64_t kSumsFloats = 65536;

/// One batch of a packed weight.
struct KcsrWeight {
  const float* values;
  const std::uint8_t* cols;
  const std::uint32_t* segments;
  const std::int64_t* blocks;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;

  KcsrWeight(const PackedView& packed, std::int64_t batch)
      : values(packed.array<float>(detail::KcsrArrays::kValues)),
        cols(packed.array<std::uint8_t>(detail::KcsrArrays::kCols)),
        out(packed.out()),
        in(packed.in()),
        block(detail::kcsr_block(packed.layout())),
        block_count(detail::ceil_div(in, block)) {
    segments =
        packed.array<std::uint32_t>(detail::KcsrArrays::kSegmentOffsets) + batch * block_count * (out + 1);
    blocks = packed.array<std::int64_t>(detail::KcsrArrays::kBlockOffsets) + batch * (block_count + 1);
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
};

/// The narrowest panel that holds `tokens`, at most `widest` vectors: an index into kPanelVectors.
inline int panel_width(std::int64_t tokens, std::int64_t vector_lanes, int widest) {
  for (int i = 0; i < kPanelWidths; ++i) {
    if (kPanelVectors[i] >= widest || kPanelVectors[i] * vector_lanes >= tokens) return i;
  }
  return kPanelWidths - 1;
}

}  // namespace gossamer::cpu
