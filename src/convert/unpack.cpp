// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>
#include <vector>

#include "convert/rows.h"
#include "core/fail.h"
#include "core/half.h"
#include "core/row_source.h"
#include "gossamer/packed_weight.h"

namespace gossamer {
namespace {

using detail::fail;

std::string shape_text(std::int64_t batch, std::int64_t rows, std::int64_t cols) {
  return batch == 1 ? fmt::format("[{}, {}]", rows, cols)
                    : fmt::format("[{}, {}, {}]", batch, rows, cols);
}

void check_unpack_view(const MatrixView& view, const PackedView& packed, std::string_view what) {
  detail::check_view(read_only(view), what);
  if (view.batch == packed.batch() && view.rows == packed.out() && view.cols == packed.in()) return;
  fail(ErrorCode::kInvalidArgument, "{}: shape {}, the packed weight has {}", what,
       shape_text(view.batch, view.rows, view.cols),
       shape_text(packed.batch(), packed.out(), packed.in()));
}

void check_values(const MatrixView& values, const PackedView& packed) {
  check_unpack_view(values, packed, "values");
  if (values.dtype == packed.dtype()) return;
  fail(ErrorCode::kInvalidArgument, "values: dtype {}, the packed weight has {}",
       dtype_name(values.dtype), dtype_name(packed.dtype()));
}

void check_mask(const MatrixView& mask, const PackedView& packed) {
  check_unpack_view(mask, packed, "mask");
  if (dtype_bytes(mask.dtype) == 1) return;
  fail(ErrorCode::kInvalidArgument, "mask: dtype {}, expected bool", dtype_name(mask.dtype));
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

/// Any layout, row by row; a source keeps scratch rows, so that every thread has its own.
void unpack_any(const PackedView& packed, const MatrixView* values, const MatrixView* mask,
                const ParallelFor& parallel) {
  const std::int64_t out = packed.out();
  parallel_for(parallel, packed.batch() * out, [&](std::int64_t begin, std::int64_t end) {
    const auto source = detail::packed_source(packed);
    detail::with_raw_type(dtype_bytes(packed.dtype()), [&]<typename Raw>(Raw) {
      std::vector<Raw> row(static_cast<std::size_t>(packed.in()));
      std::vector<std::uint8_t> kept(static_cast<std::size_t>(packed.in()));
      for (std::int64_t r = begin; r < end; ++r) {
        source->read(r / out, r % out, reinterpret_cast<std::byte*>(row.data()), kept.data());
        if (values != nullptr) scatter_row(row.data(), *values, r / out, r % out);
        if (mask != nullptr) scatter_row(kept.data(), *mask, r / out, r % out);
      }
    });
  });
}

}  // namespace

void unpack(const PackedView& packed, const MatrixView& values, const MatrixView* mask,
            const ParallelFor& parallel) {
  check_values(values, packed);
  if (mask != nullptr) check_mask(*mask, packed);
  if (detail::unpack_rows(packed, &values, mask, parallel)) return;
  unpack_any(packed, &values, mask, parallel);
}

void unpack_mask(const PackedView& packed, const MatrixView& mask, const ParallelFor& parallel) {
  check_mask(mask, packed);
  if (detail::unpack_rows(packed, nullptr, &mask, parallel)) return;
  unpack_any(packed, nullptr, &mask, parallel);
}

}  // namespace gossamer
