// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gossamer/dtype.h"
#include "gossamer/error.h"
#include "gossamer/packed_weight.h"
#include "gossamer/parallel.h"
#include "gossamer/tensor_view.h"

/// What lies between torch's stable ABI and the core: dtypes, views, memory, threads, errors.
namespace gossamer::door {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// The most dimensions that a torch tensor can have.
inline constexpr std::size_t kMaxDims = 64;

/// An Error about an argument, as ValueError in Python.
[[noreturn]] void refuse(const std::string& message);

/// Runs an operator's body. Arguments and bytes that are wrong become ValueError in Python, the
/// rest RuntimeError, both with the core's own text.
template <typename F>
auto guarded(const F& body) {
  try {
    return body();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported || error.code() == ErrorCode::kIo) throw;
    throw std::invalid_argument(error.what());
  }
}

/// The core's name for a tensor's dtype; `name` is what an error calls the tensor.
DType dtype_of(const Tensor& tensor, const char* name);
/// The code that the C shim uses for a dtype.
std::int32_t shim_dtype(DType dtype);
DType from_scalar_type(ScalarType type);

/// A new contiguous CPU tensor, not initialised.
Tensor empty(std::span<const std::int64_t> sizes, DType dtype);
Tensor as_contiguous(const Tensor& tensor);
/// "[2, 3, 4]" for messages.
std::string shape_text(std::span<const std::int64_t> sizes);
inline std::span<const std::int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.data(), sizes.size()};
}
inline std::span<const std::int64_t> strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {strides.data(), strides.size()};
}

/// A tensor of 2 or 3 dimensions as [batch,] rows × cols, strides as they are.
ConstMatrixView matrix_view(const Tensor& tensor, const char* name);
MatrixView mutable_matrix_view(const Tensor& tensor, const char* name);

/// A packed byte tensor that the core may read: 64-byte aligned (copied where it is not, which
/// happens to memory-mapped checkpoints) and checked by PackedView::open.
class PackedTensor {
 public:
  explicit PackedTensor(const Tensor& tensor);
  const PackedView& view() const { return view_; }

 private:
  PackedTensor(Tensor tensor, int) : tensor_(std::move(tensor)), view_(open(tensor_)) {}
  static PackedView open(const Tensor& tensor);
  Tensor tensor_;
  PackedView view_;
};

/// A packed weight that is written to where it lies.
PackedView open_in_place(const Tensor& packed);

/// Memory for packed weights that is a torch tensor from the start, so that packing copies nothing.
PackedAllocator tensor_allocator();
/// The tensor behind a packed weight made with tensor_allocator().
Tensor to_tensor(const PackedWeight& packed);
/// A packed weight in a copy of `packed` that may be changed.
PackedWeight copy_packed(const PackedView& packed);

/// torch's intra-op threads.
ParallelFor torch_threads();

}  // namespace gossamer::door
