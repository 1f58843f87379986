// SPDX-License-Identifier: BSD-3-Clause
#include "torch/rows.h"

#include <algorithm>
#include <optional>

namespace gossamer::door {
namespace {

/// The stride between consecutive rows when dimensions [first, dims - 1) are walked as one; nothing
/// where they cannot be.
std::optional<std::int64_t> row_stride(std::span<const std::int64_t> sizes,
                                       std::span<const std::int64_t> strides, std::size_t first) {
  const std::size_t last = sizes.size() - 1;
  if (sizes[last] > 1 && strides[last] != 1) return std::nullopt;
  std::int64_t stride = sizes[last];
  std::int64_t expected = -1;  // of the next longer dimension
  for (std::size_t i = last; i-- > first;) {
    if (sizes[i] == 1) continue;
    if (expected < 0) {
      stride = strides[i];
    } else if (strides[i] != expected) {
      return std::nullopt;
    }
    expected = strides[i] * sizes[i];
  }
  return stride;
}

}  // namespace

Rows as_rows(const Tensor& tensor, bool batched) {
  const std::size_t first = batched ? 1 : 0;
  const auto sizes = sizes_of(tensor);
  if (const auto stride = row_stride(sizes, strides_of(tensor), first); stride && *stride >= 0) {
    return {tensor, *stride, batched ? tensor.stride(0) : 0};
  }
  Tensor copy = as_contiguous(tensor);
  const std::int64_t in = sizes.back();
  return {std::move(copy), in, batched ? in * sizes[1] : 0};
}

Shape::Shape(std::span<const std::int64_t> sizes, std::int64_t last) : dims_(sizes.size()) {
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  sizes_[dims_ - 1] = last;
}

}  // namespace gossamer::door
