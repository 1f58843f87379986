// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <string_view>

#include "core/fail.h"
#include "gossamer/dtype.h"
#include "gossamer/tensor_view.h"

// Arguments of the solvers: refused before anything is written.
namespace gossamer::detail {

/// A row-major matrix of one element type, after its view was checked.
template <typename T>
struct Rows {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  T* operator[](std::int64_t row) const { return data + row * stride; }
};

template <typename T>
using ConstRows = Rows<const T>;

template <typename T>
constexpr DType dtype_for() {
  if constexpr (sizeof(T) == 8) return DType::kFloat64;
  if constexpr (sizeof(T) == 4) return DType::kFloat32;
  return DType::kBool;
}

/// The view as rows; `rows` and `cols` of -1 take any number.
template <typename T, typename Byte>
Rows<T> checked_rows(const BasicMatrixView<Byte>& view, std::string_view name, std::int64_t rows,
                     std::int64_t cols) {
  const DType dtype = dtype_for<std::remove_const_t<T>>();
  if (view.dtype != dtype) {
    fail(ErrorCode::kInvalidArgument, "{} is {}, expected {}", name, dtype_name(view.dtype),
         dtype_name(dtype));
  }
  if (view.batch != 1 || (rows >= 0 && view.rows != rows) || (cols >= 0 && view.cols != cols)) {
    fail(ErrorCode::kInvalidArgument, "{} is [{}, {}, {}], expected [1, {}, {}]", name, view.batch,
         view.rows, view.cols, rows < 0 ? view.rows : rows, cols < 0 ? view.cols : cols);
  }
  if (view.cols > 1 && view.col_stride != 1) {
    fail(ErrorCode::kInvalidArgument,
         "{} has {} elements between its columns, expected 1; make it contiguous", name,
         view.col_stride);
  }
  return {reinterpret_cast<T*>(view.data), view.rows, view.cols, view.row_stride};
}

/// A number that must be positive.
inline void check_positive(std::string_view name, double value) {
  if (!(value > 0))
    fail(ErrorCode::kInvalidArgument, "{} is {}, expected more than 0", name, value);
}

/// Where groups of M columns begin anew: the length of a segment, 0 standing for the whole row.
inline std::int64_t checked_segment(std::int64_t segment, std::int64_t cols) {
  if (segment == 0) return cols;
  if (segment < 0 || cols % segment != 0) {
    fail(ErrorCode::kInvalidArgument, "segment {}: 0 or a divisor of the {} columns is accepted",
         segment, cols);
  }
  return segment;
}

}  // namespace gossamer::detail
