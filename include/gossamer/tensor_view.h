// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "gossamer/dtype.h"

namespace gossamer {

/// A [batch,] rows × cols matrix in memory that somebody else owns. Strides count elements, may be
/// zero or negative, and make a transposed weight a view like any other.
template <typename Byte>
struct BasicMatrixView {
  Byte* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 1;
  std::int64_t batch = 1;
  std::int64_t batch_stride = 0;

  /// What may be written may be read: a view of mutable memory goes wherever one of constant memory
  /// is asked for.
  operator BasicMatrixView<const std::byte>() const
    requires(!std::is_const_v<Byte>)
  {
    return {data, dtype, rows, cols, row_stride, col_stride, batch, batch_stride};
  }
};

using ConstMatrixView = BasicMatrixView<const std::byte>;
using MatrixView = BasicMatrixView<std::byte>;

/// A dense row-major view, all batches contiguous.
inline ConstMatrixView contiguous_view(const void* data, DType dtype, std::int64_t rows,
                                       std::int64_t cols, std::int64_t batch = 1) {
  return {static_cast<const std::byte*>(data), dtype, rows, cols, cols, 1, batch, rows * cols};
}

/// The same for memory that will be written.
inline MatrixView contiguous_view(void* data, DType dtype, std::int64_t rows, std::int64_t cols,
                                  std::int64_t batch = 1) {
  return {static_cast<std::byte*>(data), dtype, rows, cols, cols, 1, batch, rows * cols};
}

/// Reading rights to a view that may be written, where the conversion is to be seen.
inline ConstMatrixView read_only(const MatrixView& view) { return view; }

}  // namespace gossamer
