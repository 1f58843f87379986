// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "torch/bridge.h"

/// Tensors of any number of dimensions as the rows of a matrix.
namespace gossamer::door {

/// X (or a residual) as rows: the tensor itself where its rows have a regular stride, else a copy.
struct Rows {
  Tensor tensor;
  std::int64_t stride = 0;        ///< between rows, in elements
  std::int64_t batch_stride = 0;  ///< between the matrices of a batch
};

Rows as_rows(const Tensor& tensor, bool batched);

/// A tensor's shape with `last` as its last dimension, without touching the heap.
class Shape {
 public:
  Shape(std::span<const std::int64_t> sizes, std::int64_t last);
  std::span<const std::int64_t> span() const { return {sizes_.data(), dims_}; }

 private:
  std::size_t dims_;
  std::array<std::int64_t, kMaxDims> sizes_;
};

}  // namespace gossamer::door
