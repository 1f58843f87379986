// SPDX-License-Identifier: BSD-3-Clause
// Quantization of activations on a GPU.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cuda/quantize.h"
#include "torch/ops_cuda.h"
#include "torch/rows.h"

namespace gossamer::door::cuda_ops {

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x, ScalarType dtype) {
  return guarded([&] {
    const OnDevice device(x);
    const DType from = dtype_of(x, "x");
    const DType to = from_scalar_type(dtype);
    if (from != DType::kBFloat16 && from != DType::kFloat16) {
      refuse(
          fmt::format("x is {}: float16 and bfloat16 are quantized on a GPU; convert it with "
                      ".to(torch.bfloat16)",
                      dtype_name(from)));
    }
    if (to != DType::kInt8 && to != DType::kFloat8E4M3) {
      refuse(fmt::format("dtype {}: int8 and float8_e4m3fn are accepted", dtype_name(to)));
    }
    const auto sizes = sizes_of(x);
    if (sizes.empty()) refuse("x has no dimensions; [..., in] is accepted");
    const std::int64_t columns = sizes.back();
    // Rows begin at multiples of 16 bytes, as the copy engine wants them.
    const std::int64_t stride = (columns + 15) / 16 * 16;
    const Shape padded(sizes, stride);
    const Tensor q = empty_on(x, padded.span(), to);
    const Tensor scale = empty_on(x, sizes.first(sizes.size() - 1), DType::kFloat32);
    if (q.numel() != 0) {
      const Rows rows = as_rows(x, false);
      cuda::QuantizeArgs args;
      args.x = rows.tensor.const_data_ptr();
      args.x_dtype = from;
      args.x_stride = rows.stride;
      args.q = q.mutable_data_ptr();
      args.q_dtype = to;
      args.q_stride = stride;
      args.scale = static_cast<float*>(scale.mutable_data_ptr());
      args.rows = x.numel() / columns;
      args.columns = columns;
      cuda::quantize_rows(args, device.stream());
    }
    const auto last = static_cast<std::int64_t>(sizes.size()) - 1;
    Tensor whole = q;
    return std::tuple<Tensor, Tensor>(
        stride == columns ? q : torch::stable::narrow(whole, last, 0, columns), scale);
  });
}

}  // namespace gossamer::door::cuda_ops
