// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/encode.h"
#include "core/fail.h"
#include "core/half.h"
#include "core/layouts.h"
#include "core/mask_verify.h"
#include "core/row_source.h"

namespace gossamer {
namespace {

using detail::fail;

std::string shape_text(std::int64_t batch, std::int64_t rows, std::int64_t cols) {
  return batch == 1 ? fmt::format("[{}, {}]", rows, cols)
                    : fmt::format("[{}, {}, {}]", batch, rows, cols);
}

/// What a weight that breaks its pattern is refused with.
[[noreturn]] void refuse_violation(const std::string& name, const Violation& violation,
                                   const Pattern& pattern) {
  fail(ErrorCode::kPatternViolation,
       "weight '{}' {}; prune it first (gossamer.Magnitude(\"{}\")) or pass "
       "pattern=\"unstructured\"",
       name, violation.message, pattern.to_string());
}

void check_unpack_view(const MatrixView& view, const PackedView& packed, std::string_view what) {
  detail::check_view(read_only(view), what);
  if (view.batch == packed.batch() && view.rows == packed.out() && view.cols == packed.in()) return;
  fail(ErrorCode::kInvalidArgument, "{}: shape {}, the packed weight has {}", what,
       shape_text(view.batch, view.rows, view.cols),
       shape_text(packed.batch(), packed.out(), packed.in()));
}

/// Writes one row of elements to where a view has it.
template <typename Raw>
void scatter_row(const Raw* from, const MatrixView& to, std::int64_t batch, std::int64_t row) {
  if (to.cols == 0) return;
  constexpr std::int64_t kBytes = sizeof(Raw);
  std::byte* begin = to.data + (batch * to.batch_stride + row * to.row_stride) * kBytes;
  if (to.col_stride == 1) {
    std::memcpy(begin, from, static_cast<std::size_t>(to.cols * kBytes));
    return;
  }
  for (std::int64_t i = 0; i < to.cols; ++i) {
    detail::store_raw(begin + i * to.col_stride * kBytes, from[i]);
  }
}

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

PackedWeight pack(const ConstMatrixView& values, const ConstMatrixView* mask,
                  const Pattern& pattern, Layout layout, const PackOptions& options) {
  try {
    const FormatInfo info{
        layout,      values.dtype,       pattern,          values.batch,    values.rows,
        values.cols, options.transposed, options.kernel_h, options.kernel_w};
    const std::unique_ptr<detail::RowSource> source = detail::dense_source(values, mask);
    detail::layout_spec(info, 0);
    if (const auto violation = detail::find_violation(*source, pattern)) {
      refuse_violation(options.name, *violation, pattern);
    }
    return detail::encode(*source, info, options.allocator);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kPatternViolation) throw;
    fail(error.code(), "weight '{}': {}", options.name, error.what());
  }
}

void unpack(const PackedView& packed, const MatrixView& values, const MatrixView* mask) {
  check_unpack_view(values, packed, "values");
  if (values.dtype != packed.dtype()) {
    fail(ErrorCode::kInvalidArgument, "values: dtype {}, the packed weight has {}",
         dtype_name(values.dtype), dtype_name(packed.dtype()));
  }
  if (mask != nullptr) {
    check_unpack_view(*mask, packed, "mask");
    if (dtype_bytes(mask->dtype) != 1) {
      fail(ErrorCode::kInvalidArgument, "mask: dtype {}, expected bool", dtype_name(mask->dtype));
    }
  }
  const auto source = detail::packed_source(packed);
  detail::with_raw_type(dtype_bytes(packed.dtype()), [&]<typename Raw>(Raw) {
    std::vector<Raw> row(static_cast<std::size_t>(packed.in()));
    std::vector<std::uint8_t> kept(static_cast<std::size_t>(packed.in()));
    for (std::int64_t b = 0; b < packed.batch(); ++b) {
      for (std::int64_t r = 0; r < packed.out(); ++r) {
        source->read(b, r, reinterpret_cast<std::byte*>(row.data()), kept.data());
        scatter_row(row.data(), values, b, r);
        if (mask != nullptr) scatter_row(kept.data(), *mask, b, r);
      }
    }
  });
}

PackedWeight convert(const PackedView& packed, Layout layout, const PackedAllocator& allocator) {
  FormatInfo info = detail::info_of(packed.header());
  info.format = layout;
  return detail::encode(*detail::packed_source(packed), info, allocator);
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
