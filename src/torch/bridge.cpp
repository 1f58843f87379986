// SPDX-License-Identifier: BSD-3-Clause
#include "torch/bridge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace gossamer::door {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::size_t kDTypes = 12;

/// The shim's code of each DType, in DType's order. Codes are asked for, not assumed: the stable
/// ABI promises the functions, not the numbers.
const std::array<std::int32_t, kDTypes>& shim_dtypes() {
  static const std::array<std::int32_t, kDTypes> codes{
      aoti_torch_dtype_float64(),  aoti_torch_dtype_float32(),       aoti_torch_dtype_float16(),
      aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float8_e4m3fn(), aoti_torch_dtype_int8(),
      aoti_torch_dtype_uint8(),    aoti_torch_dtype_bool(),          aoti_torch_dtype_uint16(),
      aoti_torch_dtype_int32(),    aoti_torch_dtype_uint32(),        aoti_torch_dtype_int64()};
  return codes;
}

/// Keeps the tensor alive whose bytes a shared_ptr points to.
struct TensorHolder {
  Tensor tensor;
  void operator()(std::byte*) const {}
};

std::shared_ptr<std::byte> share(Tensor tensor) {
  auto* data = static_cast<std::byte*>(tensor.mutable_data_ptr());
  return {data, TensorHolder{std::move(tensor)}};
}

template <typename Byte>
BasicMatrixView<Byte> view_of(const Tensor& tensor, Byte* data, const char* name) {
  const auto sizes = sizes_of(tensor);
  const auto strides = strides_of(tensor);
  if (sizes.size() != 2 && sizes.size() != 3) {
    refuse(
        fmt::format("{} has shape {}: 2 dimensions [out, in] or 3 [batch, out, in] are accepted; "
                    "reshape it first",
                    name, shape_text(sizes)));
  }
  const std::size_t row = sizes.size() - 2;
  BasicMatrixView<Byte> view{data,           dtype_of(tensor, name), sizes[row],
                             sizes[row + 1], strides[row],           strides[row + 1]};
  if (row == 1) {
    view.batch = sizes[0];
    view.batch_stride = strides[0];
  }
  return view;
}

bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
}

}  // namespace

void refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

DType dtype_of(const Tensor& tensor, const char* name) {
  std::int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  const auto& codes = shim_dtypes();
  const auto* const found = std::find(codes.begin(), codes.end(), code);
  if (found == codes.end()) {
    refuse(fmt::format(
        "{} has a dtype that Gossamer does not know; float64, float32, float16, bfloat16, "
        "float8_e4m3fn and int8 are accepted: convert it with .to()",
        name));
  }
  return static_cast<DType>(found - codes.begin());
}

std::int32_t shim_dtype(DType dtype) { return shim_dtypes()[static_cast<std::size_t>(dtype)]; }

DType from_scalar_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float8_e4m3fn:
      return DType::kFloat8E4M3;
    case ScalarType::Char:
      return DType::kInt8;
    default:
      refuse(fmt::format(
          "dtype {}: a weight is float64, float32, float16, bfloat16, float8_e4m3fn or int8",
          torch::headeronly::toString(type)));
  }
}

Tensor empty(std::span<const std::int64_t> sizes, DType dtype) {
  std::array<std::int64_t, kMaxDims> strides;
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()),
                                                  sizes.data(), strides.data(), shim_dtype(dtype),
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor as_contiguous(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

std::string shape_text(std::span<const std::int64_t> sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

ConstMatrixView matrix_view(const Tensor& tensor, const char* name) {
  return view_of(tensor, static_cast<const std::byte*>(tensor.const_data_ptr()), name);
}

MatrixView mutable_matrix_view(const Tensor& tensor, const char* name) {
  return view_of(tensor, static_cast<std::byte*>(tensor.mutable_data_ptr()), name);
}

PackedTensor::PackedTensor(const Tensor& tensor)
    : PackedTensor(is_aligned(tensor) ? tensor : torch::stable::clone(tensor), 0) {}

PackedView PackedTensor::open(const Tensor& tensor) {
  std::int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  if (code != shim_dtype(DType::kUInt8) || tensor.dim() != 1 || !tensor.is_contiguous()) {
    refuse(fmt::format(
        "packed has shape {} and is {} bytes an element: a packed weight is a contiguous "
        "1-D uint8 tensor as torch.ops.gossamer.pack returns it",
        shape_text(sizes_of(tensor)), tensor.element_size()));
  }
  return PackedView::open(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.numel());
}

PackedView open_in_place(const Tensor& packed) {
  if (reinterpret_cast<std::uintptr_t>(packed.const_data_ptr()) % kAlignment != 0) {
    refuse("packed does not begin at a multiple of 64 bytes; write to a clone of it");
  }
  return PackedTensor(packed).view();
}

PackedAllocator tensor_allocator() {
  return [](std::int64_t bytes) {
    return share(empty(std::span<const std::int64_t>(&bytes, 1), DType::kUInt8));
  };
}

Tensor to_tensor(const PackedWeight& packed) {
  if (const auto* holder = std::get_deleter<TensorHolder>(packed.storage());
      holder != nullptr && holder->tensor.numel() == packed.size_bytes() &&
      holder->tensor.const_data_ptr() == packed.data()) {
    return holder->tensor;
  }
  const std::int64_t bytes = packed.size_bytes();
  Tensor copy = empty(std::span<const std::int64_t>(&bytes, 1), DType::kUInt8);
  std::memcpy(copy.mutable_data_ptr(), packed.data(), static_cast<std::size_t>(bytes));
  return copy;
}

PackedWeight copy_packed(const PackedView& packed) {
  const std::int64_t bytes = packed.size_bytes();
  auto storage = tensor_allocator()(bytes);
  std::memcpy(storage.get(), packed.data(), static_cast<std::size_t>(bytes));
  return {std::move(storage), bytes};
}

ParallelFor torch_threads() {
  std::uint32_t threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  ParallelFor pool;
  pool.threads = static_cast<int>(std::max(threads, 1u));
  pool.run = [](void*, std::int64_t count, ParallelFor::Body body, const void* context) {
    struct Call {
      ParallelFor::Body body;
      const void* context;
    };
    Call call{body, context};
    const auto run = [](std::int64_t begin, std::int64_t end, void* self) {
      const auto* const inner = static_cast<const Call*>(self);
      inner->body(inner->context, begin, end);
    };
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, run, &call));
  };
  return pool;
}

}  // namespace gossamer::door
