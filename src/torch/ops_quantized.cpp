// SPDX-License-Identifier: BSD-3-Clause
// Linear layers with int8 weights: what is floating in PyTorch is quantized here, a token at a
// time or at a scale that was calibrated, and comes back floating, or as the next layer's int8.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>

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

/// x itself where it is int8, or its rows as int8; `memory` and `x_scale` belong to the call.
struct Int8Rows {
  Tensor memory;
  Tensor x_scale;
};

Int8Rows quantized_rows(const Tensor& x, DType dtype, const Int8Scales& scales, LinearArgs& args) {
  const std::int64_t inputs = args.weight.in();
  const std::array<std::int64_t, 1> scale_shape{args.tokens};
  Tensor x_scale = empty(scale_shape, DType::kFloat32);
  auto* scale = static_cast<float*>(x_scale.mutable_data_ptr());
  args.x_scale = scale;
  if (dtype_of(x, "x") == DType::kInt8) {
    const Rows rows = as_rows(x, false);
    std::fill_n(scale, args.tokens, scales.x);
    args.x = rows.tensor.const_data_ptr();
    args.x_stride = rows.stride;
    return {rows.tensor, x_scale};
  }
  const Rows rows = as_rows(as_float(x, dtype), false);
  const std::array<std::int64_t, 2> q_shape{args.tokens, inputs};
  Tensor q = empty(q_shape, DType::kInt8);
  args.x = q.const_data_ptr();
  args.x_stride = inputs;
  quantize_tokens({.x = static_cast<const float*>(rows.tensor.const_data_ptr()),
                   .x_stride = rows.stride,
                   .tokens = args.tokens,
                   .in = inputs,
                   .q = static_cast<std::int8_t*>(q.mutable_data_ptr()),
                   .scale = scale,
                   .fixed_scale = scales.x,
                   .parallel = args.parallel});
  return {q, x_scale};
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

Int8Scales checked_scales(double x_scale, double y_scale) {
  const auto check = [](double value, const char* name) {
    const auto scale = static_cast<float>(value);
    // The reciprocal of a subnormal one is infinite.
    if (value == 0.0 || (std::isnormal(scale) && scale > 0.0f)) return scale;
    refuse(fmt::format("{} is {}: a scale above 1.2e-38 is accepted, or 0 for none", name, value));
  };
  return {check(x_scale, "x_scale"), check(y_scale, "y_scale")};
}

Tensor linear_quantized(const Tensor& x, const PackedView& weight, const Tensor& scale,
                        const Int8Scales& scales, DType dtype, const std::optional<Tensor>& bias,
                        Activation activation, const std::optional<Tensor>& residual,
                        const std::optional<Tensor>& dense) {
  check_scale(scale, weight);
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
  const bool is_int8 = dtype_of(x, "x") == DType::kInt8;
  if (dense && !is_int8 && scales.y == 0.0f) {
    check_like_x(*dense, "dense", dtype);
    check_dense(*dense, weight);
    if (choose_kernel(weight, args.tokens, args.parallel.threads) == nullptr) {
      return dense_linear(x, *dense, bias, activation, residual);
    }
  }

  args.y_scale = scales.y;
  Tensor y = empty(y_shape.span(), scales.y > 0.0f ? DType::kInt8 : DType::kFloat32);
  if (args.tokens > 0 && weight.out() > 0) {
    args.weight_scale = static_cast<const float*>(scale.const_data_ptr());
    const Int8Rows rows = quantized_rows(x, dtype, scales, args);
    args.y = y.mutable_data_ptr();
    args.y_stride = weight.out();
    run_linear(args);
  }
  return dtype == DType::kFloat32 || scales.y > 0.0f ? y : torch::stable::to(y, type);
}

Tensor linear_int8(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                   const Tensor& scale, double x_scale, double y_scale, ScalarType dtype,
                   const std::optional<Tensor>& bias, std::int64_t activation,
                   const std::optional<Tensor>& residual, const std::optional<Tensor>& dense) {
  return guarded([&] {
    const PackedTensor packed_tensor(packed);
    const PackedView& weight = packed_tensor.view();
    check_linear_call(x, weight, layout, out);
    const Int8Scales scales = checked_scales(x_scale, y_scale);
    const DType floating = from_scalar_type(dtype);
    const DType given = dtype_of(x, "x");
    if (given == DType::kInt8 && scales.x == 0.0f) {
      refuse("x is int8 and x_scale is 0: the scale that x was rounded with is needed");
    }
    if (given != DType::kInt8 && given != floating) {
      refuse(fmt::format("x is {} and dtype {}: both must be the same, or x int8; convert x",
                         dtype_name(given), dtype_name(floating)));
    }
    return linear_quantized(x, weight, scale, scales, floating, bias,
                            checked_activation(activation), residual, dense);
  });
}

}  // namespace gossamer::door
