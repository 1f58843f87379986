// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/packed_weight.h"

#include <algorithm>
#include <utility>

#include "core/encode.h"
#include "core/fail.h"
#include "core/layouts.h"
#include "core/row_source.h"

namespace gossamer {
namespace {

using detail::fail;

/// Rows that a slice may begin or end at: panels of a pattern stay whole.
std::int64_t row_unit(const Pattern& pattern) {
  if (pattern.kind == Pattern::Kind::kBlock) return pattern.block_rows;
  return pattern.kind == Pattern::Kind::kVnm ? pattern.v : 1;
}

void check_cut(const PackedView& packed, std::int64_t row) {
  const std::int64_t unit = row_unit(packed.pattern());
  if (row % unit == 0 || row == packed.out()) return;
  const std::int64_t below = row / unit * unit;
  fail(ErrorCode::kInvalidArgument,
       "a weight of pattern {} cannot be cut at row {}; the nearest rows are {} and {}",
       packed.pattern().to_string(), row, below, std::min(below + unit, packed.out()));
}

void check_part(const PackedView& first, const PackedView& part, std::size_t index, bool last) {
  if (part.layout() != first.layout() || part.dtype() != first.dtype() ||
      !(part.pattern() == first.pattern()) || part.batch() != first.batch() ||
      part.in() != first.in() || part.transposed() != first.transposed() ||
      part.header().kernel_h != first.header().kernel_h ||
      part.header().kernel_w != first.header().kernel_w) {
    fail(ErrorCode::kInvalidArgument,
         "part {} is {} {} {} of batch {} and in {}, the first is {} {} {} of batch {} and in {}; "
         "parts must agree in all of these, in being transposed and in the convolution's kernel",
         index, layout_name(part.layout()), dtype_name(part.dtype()), part.pattern().to_string(),
         part.batch(), part.in(), layout_name(first.layout()), dtype_name(first.dtype()),
         first.pattern().to_string(), first.batch(), first.in());
  }
  const std::int64_t unit = row_unit(first.pattern());
  if (!last && part.out() % unit != 0) {
    fail(ErrorCode::kInvalidArgument,
         "part {} has {} rows; with pattern {} all parts but the last need a multiple of {}", index,
         part.out(), first.pattern().to_string(), unit);
  }
}

}  // namespace

PackedWeight convert(const PackedView& packed, Layout layout, const PackedAllocator& allocator) {
  FormatInfo info = detail::info_of(packed.header());
  info.format = layout;
  return detail::encode(*detail::packed_source(packed), info, allocator);
}

std::int64_t converted_size_bytes(const PackedView& packed, Layout layout) {
  FormatInfo info = detail::info_of(packed.header());
  info.format = layout;
  return detail::encoded_bytes(*detail::packed_source(packed), info);
}

PackedWeight slice_rows(const PackedView& packed, std::int64_t begin, std::int64_t end,
                        const PackedAllocator& allocator) {
  if (begin < 0 || begin > end || end > packed.out()) {
    fail(ErrorCode::kInvalidArgument, "rows {} to {} of a weight with {} rows", begin, end,
         packed.out());
  }
  check_cut(packed, begin);
  check_cut(packed, end);
  FormatInfo info = detail::info_of(packed.header());
  info.out = end - begin;
  const auto whole = detail::packed_source(packed);
  return detail::encode(*detail::sliced_source(*whole, begin, end), info, allocator);
}

PackedWeight concat_rows(std::span<const PackedView> parts, const PackedAllocator& allocator) {
  if (parts.empty()) fail(ErrorCode::kInvalidArgument, "no parts to stack; at least one is needed");
  FormatInfo info = detail::info_of(parts[0].header());
  info.out = 0;
  std::vector<std::unique_ptr<detail::RowSource>> sources;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    check_part(parts[0], parts[i], i, i + 1 == parts.size());
    info.out += parts[i].out();
    sources.push_back(detail::packed_source(parts[i]));
  }
  return detail::encode(*detail::stacked_source(std::move(sources)), info, allocator);
}

}  // namespace gossamer
