// SPDX-License-Identifier: BSD-3-Clause
#include "torch/cuda_bridge.h"

#include <fmt/format.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "cuda/transfer.h"

namespace gossamer::door {

void* OnDevice::stream() const {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
  return stream;
}

Tensor empty_on(const Tensor& like, std::span<const std::int64_t> sizes, DType dtype) {
  std::array<std::int64_t, kMaxDims> strides;
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(), shim_dtype(dtype),
      aoti_torch_device_type_cuda(), like.get_device_index(), &handle));
  return Tensor(handle);
}

bool is_aligned(const Tensor& packed) {
  constexpr std::uintptr_t kAlignment = 16;
  return reinterpret_cast<std::uintptr_t>(packed.const_data_ptr()) % kAlignment == 0;
}

Tensor aligned(const Tensor& packed) {
  return is_aligned(packed) ? packed : torch::stable::clone(packed);
}

void check_device(const Tensor& tensor, const char* name, const Tensor& weight,
                  const char* weight_name) {
  if (tensor.is_cuda() && weight.is_cuda() &&
      tensor.get_device_index() == weight.get_device_index())
    return;
  const auto place = [](const Tensor& t) {
    return t.is_cuda() ? fmt::format("cuda:{}", t.get_device_index()) : std::string("the CPU");
  };
  refuse(fmt::format("{} is on {}, {} on {}: both must be on one device; move {} with .to(\"{}\")",
                     name, place(tensor), weight_name, place(weight), name,
                     weight.is_cuda() ? place(weight) : "cpu"));
}

FormatInfo tiles_info(DType dtype, std::int64_t batch, std::int64_t out, std::int64_t in,
                      bool transposed) {
  return {Layout::kNm24Tiles, dtype, Pattern::nm(2, 4), batch, out, in, transposed};
}

void check_layout(std::int64_t argument) {
  constexpr std::int64_t kNumber = 63;  // cuda_layout_argument.h
  if ((argument & kNumber) == static_cast<std::int64_t>(Layout::kNm24Tiles)) return;
  refuse(
      fmt::format("layout {} is not computed on a GPU; layout {} (nm24_tiles, 2:4 weights) is: "
                  "torch.ops.gossamer.convert(packed, \"nm24_tiles\")",
                  argument & kNumber, static_cast<int>(Layout::kNm24Tiles)));
}

PackedHeader read_header(const Tensor& packed, const OnDevice& device) {
  if (packed.dim() != 1 || packed.element_size() != 1 || !packed.is_contiguous() ||
      packed.numel() < static_cast<std::int64_t>(sizeof(PackedHeader))) {
    refuse(
        fmt::format("packed has shape {}: a packed weight is a contiguous 1-D uint8 tensor as "
                    "torch.ops.gossamer.pack returns it",
                    shape_text(sizes_of(packed))));
  }
  PackedHeader header;
  cuda::read_device(&header, packed.const_data_ptr(), sizeof(header), device.stream());
  if (header.magic != PackedHeader::kMagic || header.total_bytes != packed.numel()) {
    refuse(
        "packed does not start with a header that describes it; it must come unchanged from pack() "
        "or a file that gossamer wrote");
  }
  return header;
}

void call_operator(const char* name, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
}

}  // namespace gossamer::door
