// SPDX-License-Identifier: BSD-3-Clause
// _C_cuda.so: operators on CUDA tensors. Loaded only where torch sees a GPU, because the CUDA shims
// it refers to exist only in CUDA builds of torch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "cuda/common/device_info.h"
#include "torch/ops_cuda.h"

namespace {

/// What the plan must know of the GPU that holds `tensor`, as JSON.
std::string cuda_device_info(const torch::stable::Tensor& tensor) {
  const int device = static_cast<int>(tensor.get_device_index());
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  const gossamer::cuda::DeviceInfo info = gossamer::cuda::device_info(device);
  return "{\"name\": \"" + info.name + "\", \"compute_capability\": [" +
         std::to_string(info.compute_major) + ", " + std::to_string(info.compute_minor) +
         "], \"multiprocessors\": " + std::to_string(info.multiprocessors) +
         ", \"memory_bytes\": " + std::to_string(info.memory_bytes) +
         ", \"memory_bytes_per_second\": " +
         std::to_string(static_cast<std::int64_t>(info.memory_bytes_per_second)) +
         ", \"l2_bytes\": " + std::to_string(info.l2_bytes) +
         ", \"shared_memory_per_block_bytes\": " +
         std::to_string(info.shared_memory_per_block_bytes) + "}";
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gossamer, m) {
  m.def("cuda_device_info(Tensor tensor) -> str");
  m.def("cuda_kernel(Tensor x, int out, int layout=0) -> str");
  m.def("cuda_kernel_table(Tensor x, int out) -> str");
  m.def(
      "linear_quantized(Tensor x, Tensor? x_scale, Tensor packed, int layout, int out, Tensor? "
      "weight_scale, Tensor? bias, int activation, Tensor? residual, ScalarType dtype, bool "
      "accurate) -> Tensor");
  m.def("quantize_rows(Tensor x, ScalarType dtype) -> (Tensor, Tensor)");
  m.def("prune_pack_24(Tensor values, bool transposed=False) -> Tensor");
  m.def(
      "pack_24(Tensor values, Tensor? mask=None, str layout=\"nm24_tiles\", bool transposed=False, "
      "bool prune=False) -> (Tensor, Tensor)");
  m.def(
      "quantize_pack_24(Tensor values, Tensor? mask, ScalarType dtype, str layout=\"nm24_tiles\", "
      "bool prune=False) -> (Tensor, Tensor, Tensor)");
  m.def("unpack_tiles(Tensor packed, int layout, int[] shape, ScalarType dtype) -> Tensor");
  m.def("publish_(Tensor(a!) packed) -> ()");
  m.def("verify_24(Tensor values, Tensor? mask=None) -> Tensor");
  m.def("check_24(Tensor verdict, int inputs, str name=\"weight\") -> ()");
  m.def("select_groups(Tensor scores, int n, int m, int segment=0) -> Tensor");
  m.def(
      "obs_sweep_block_(Tensor(a!) weight, Tensor factor, Tensor(b!) mask, int begin, int end, int "
      "n, int m, int segment) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  namespace ops = gossamer::door::cuda_ops;
  m.impl("cuda_device_info", TORCH_BOX(&cuda_device_info));
  m.impl("cuda_kernel", TORCH_BOX(&ops::cuda_kernel));
  m.impl("cuda_kernel_table", TORCH_BOX(&ops::cuda_kernel_table));
  m.impl("linear", TORCH_BOX(&ops::linear));
  m.impl("linear_plain", TORCH_BOX(&ops::linear_plain));
  m.impl("linear_autograd", TORCH_BOX(&ops::linear));
  m.impl("linear_quantized", TORCH_BOX(&ops::linear_quantized));
  m.impl("quantize_rows", TORCH_BOX(&ops::quantize_rows));
  m.impl("linear_dx", TORCH_BOX(&ops::linear_dx));
  m.impl("pack", TORCH_BOX(&ops::pack));
  m.impl("publish_", TORCH_BOX(&ops::publish_));
  m.impl("pack_", TORCH_BOX(&ops::pack_));
  m.impl("pack_24", TORCH_BOX(&ops::pack_24));
  m.impl("quantize_pack_24", TORCH_BOX(&ops::quantize_pack_24));
  m.impl("verify_24", TORCH_BOX(&ops::verify_24));
  m.impl("check_24", TORCH_BOX(&ops::check_24));
  m.impl("prune_pack_24", TORCH_BOX(&ops::prune_pack_24));
  m.impl("unpack", TORCH_BOX(&ops::unpack));
  m.impl("unpack_", TORCH_BOX(&ops::unpack_));
  m.impl("unpack_tiles", TORCH_BOX(&ops::unpack_tiles));
  m.impl("unpack_mask", TORCH_BOX(&ops::unpack_mask));
  m.impl("convert", TORCH_BOX(&ops::convert));
  m.impl("select_groups", TORCH_BOX(&ops::select_groups));
  m.impl("transposable_mask", TORCH_BOX(&ops::transposable_mask));
  m.impl("obs_sweep_block_", TORCH_BOX(&ops::obs_sweep_block_));
}
