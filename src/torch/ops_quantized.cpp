// SPDX-License-Identifier: BSD-3-Clause
// Linear layers with int8 weights: what is floating in PyTorch is quantized here, a token at a
// time, and comes back floating.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "gossamer/linear.h"
#include "gossamer/quantize.h"
#include "torch/ops.h"
#include "torch/rows.h"

namespace gossamer::door {
namespace {

ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ScalarType::Float;
    case DType::kFloat16:
      return ScalarType::Half;
    case DType::kBFloat16:
      return ScalarType::BFloat16;
    default:
      refuse(fmt::format(
          "x is {}: a quantized layer takes float32, float16 and bfloat16; convert x with "
          ".to(torch.float32)",
          dtype_name(dtype)));
  }
}

Tensor as_float(const Tensor& tensor, DType dtype) {
  return dtype == DType::kFloat32 ? tensor : torch::stable::to(tensor, ScalarType::Float);
}

void check_like_x(const Tensor& tensor, const char* name, DType x) {
  if (!tensor.is_cpu()) {
    refuse(fmt::format(
        "{} is not on the CPU, where the packed weight is; move it with .to(\"cpu\")", name));
  }
  const DType dtype = dtype_of(tensor, name);
  if (dtype == x) return;
  refuse(fmt::format("{} is {}, x is {}: both must be the same; convert one of them", name,
                     dtype_name(dtype), dtype_name(x)));
}

}  // namespace

void check_scale(const Tensor& scale, const PackedView& weight) {
  if (weight.dtype() == DType::kFloat8E4M3) {
    refuse(
        "a float8 weight with scales is multiplied on CUDA devices only: move the model there with "
        ".to(\"cuda\"), or unpack it with gossamer.desparsify_(model)");
  }
  if (weight.dtype() != DType::kInt8 || weight.batch() != 1) {
    refuse(fmt::format(
        "scale is given, and the packed weight is a batch of {} in {}: scales belong to a single "
        "int8 weight; pass None",
        weight.batch(), dtype_name(weight.dtype())));
  }
  const auto sizes = sizes_of(scale);
  if (scale.is_cpu() && dtype_of(scale, "scale") == DType::kFloat32 && scale.is_contiguous() &&
      sizes.size() == 1 && sizes[0] == weight.out()) {
    return;
  }
  refuse(
      fmt::format("scale is {} {}: contiguous float32 [{}] on the CPU, one for each output, is "
                  "accepted",
                  shape_text(sizes), dtype_name(dtype_of(scale, "scale")), weight.out()));
}

Tensor linear_quantized(const Tensor& x, const PackedView& weight, const Tensor& scale,
                        const std::optional<Tensor>& bias, Activation activation,
                        const std::optional<Tensor>& residual, const std::optional<Tensor>& dense) {
  check_scale(scale, weight);
  const DType dtype = dtype_of(x, "x");
  const ScalarType type = scalar_type(dtype);
  const Shape y_shape(sizes_of(x), weight.out());
  LinearArgs args{.weight = weight, .parallel = torch_threads()};
  args.activation = activation;
  args.tokens = 1;
  for (std::size_t i = 0; i + 1 < sizes_of(x).size(); ++i) args.tokens *= sizes_of(x)[i];

  std::optional<Tensor> bias_rows;
  if (bias) {
    check_like_x(*bias, "bias", dtype);
    check_linear_bias(*bias, weight);
    bias_rows = as_float(bias->is_contiguous() ? *bias : as_contiguous(*bias), dtype);
    args.bias = bias_rows->const_data_ptr();
  }
  std::optional<Rows> residual_rows;
  if (residual) {
    check_like_x(*residual, "residual", dtype);
    check_linear_residual(*residual, y_shape.span());
    residual_rows = as_rows(as_float(*residual, dtype), false);
    args.residual = residual_rows->tensor.const_data_ptr();
    args.residual_stride = residual_rows->stride;
  }
  if (dense) {
    check_like_x(*dense, "dense", dtype);
    check_dense(*dense, weight);
    if (choose_kernel(weight, args.tokens, args.parallel.threads) == nullptr) {
      return dense_linear(x, *dense, bias, activation, residual);
    }
  }

  Tensor y = empty(y_shape.span(), DType::kFloat32);
  if (args.tokens > 0 && weight.out() > 0) {
    const Rows rows = as_rows(as_float(x, dtype), false);
    const std::array<std::int64_t, 2> q_shape{args.tokens, weight.in()};
    const std::array<std::int64_t, 1> scale_shape{args.tokens};
    Tensor q = empty(q_shape, DType::kInt8);
    Tensor x_scale = empty(scale_shape, DType::kFloat32);
    args.x = q.const_data_ptr();
    args.x_stride = weight.in();
    args.x_scale = static_cast<const float*>(x_scale.const_data_ptr());
    args.weight_scale = static_cast<const float*>(scale.const_data_ptr());
    quantize_tokens({.x = static_cast<const float*>(rows.tensor.const_data_ptr()),
                     .x_stride = rows.stride,
                     .tokens = args.tokens,
                     .in = weight.in(),
                     .q = static_cast<std::int8_t*>(q.mutable_data_ptr()),
                     .scale = static_cast<float*>(x_scale.mutable_data_ptr()),
                     .parallel = args.parallel});
    args.y = y.mutable_data_ptr();
    args.y_stride = weight.out();
    run_linear(args);
  }
  return dtype == DType::kFloat32 ? y : torch::stable::to(y, type);
}

}  // namespace gossamer::door
