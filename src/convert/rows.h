// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <optional>

#include "core/fail.h"
#include "core/layouts.h"
#include "cpu/convert.h"
#include "gossamer/packed_weight.h"

// The quick ways: rows of 16- or 32-bit elements that lie side by side, in the formats `bitmask`
// and `nm` with 2:4. Same bytes as the core's encoders give, same values as its sources.
namespace gossamer::detail {

enum class RowFormat { kBitmask, kNibbles };

inline std::optional<RowFormat> row_format(Layout layout, const Pattern& pattern, DType dtype) {
  const std::int64_t bytes = dtype_bytes(dtype);
  if (bytes != 2 && bytes != 4) return std::nullopt;
  if (layout == Layout::kBitmask) return RowFormat::kBitmask;
  if (layout == Layout::kNm && pattern == Pattern::nm(2, 4)) return RowFormat::kNibbles;
  return std::nullopt;
}

/// Words of bits of a row.
inline std::int64_t row_words(std::int64_t in) { return ceil_div(in, 64); }

/// Packs on the caller's threads; nothing where the weight has no quick way, or breaks its pattern:
/// the core's encoders say where.
std::optional<PackedWeight> pack_rows(const ConstMatrixView& values, const ConstMatrixView* mask,
                                      const FormatInfo& info, const PackOptions& options);

/// Writes values and mask where they are not null; false where the weight has no quick way.
bool unpack_rows(const PackedView& packed, const MatrixView* values, const MatrixView* mask,
                 const ParallelFor& parallel);

}  // namespace gossamer::detail
