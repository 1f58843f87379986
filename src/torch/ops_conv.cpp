// SPDX-License-Identifier: BSD-3-Clause
// Y = act(conv2d(X, W) + bias + residual): checks, one allocation, one call of the core.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "gossamer/conv.h"
#include "gossamer/quantize.h"
#include "torch/ops.h"

namespace gossamer::door {
namespace {

using Sizes = std::array<std::int64_t, 4>;

/// torch's strides: those of size-1 dimensions included.
Sizes image_strides(const Sizes& sizes, bool channels_last) {
  const auto [n, c, h, w] = sizes;
  const auto at_least_one = [](std::int64_t size) { return std::max<std::int64_t>(size, 1); };
  if (channels_last) return {h * w * c, 1, w * c, c};
  const std::int64_t row = at_least_one(w);
  const std::int64_t plane = row * at_least_one(h);
  return {plane * at_least_one(c), plane, row, 1};
}

Tensor call(const char* op, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

bool has_strides(const Tensor& tensor, const Sizes& sizes, bool channels_last) {
  const Sizes wanted = image_strides(sizes, channels_last);
  const auto strides = strides_of(tensor);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1 && strides[i] != wanted[i]) return false;
  }
  return true;
}

/// The four sizes of an image tensor, [1, C, H, W] where it has three.
Sizes image_sizes(const Tensor& tensor, const char* name) {
  const auto sizes = sizes_of(tensor);
  if (sizes.size() == 4) return {sizes[0], sizes[1], sizes[2], sizes[3]};
  if (sizes.size() == 3) return {1, sizes[0], sizes[1], sizes[2]};
  refuse(
      fmt::format("{} has shape {}: [images, channels, height, width] or [channels, height, "
                  "width] is accepted",
                  name, shape_text(sizes)));
}

/// Images whose memory a kernel can read, in one of the two formats.
struct Images {
  Tensor tensor;
  Sizes sizes;
  bool channels_last;
  ImageStrides strides() const {
    const Sizes s = image_strides(sizes, channels_last);
    return {s[0], s[1], s[2], s[3]};
  }
};

/// `x` as it is where it is contiguous in either format, else a planar copy.
Images as_images(const Tensor& x) {
  const Sizes sizes = image_sizes(x, "x");
  if (x.dim() == 3) return {as_contiguous(x), sizes, false};
  if (x.numel() == 0 || has_strides(x, sizes, false)) return {x, sizes, false};
  if (has_strides(x, sizes, true)) return {x, sizes, true};
  return {as_contiguous(x), sizes, false};
}

/// `tensor` in the memory of Y: as it is, or a copy.
Tensor in_format(const Tensor& tensor, const Sizes& sizes, bool channels_last) {
  if (tensor.dim() == 3) return as_contiguous(tensor);
  if (has_strides(tensor, sizes, channels_last)) return tensor;
  Tensor copy = empty_images(sizes, channels_last, dtype_of(tensor, "residual"));
  torch::stable::copy_(copy, tensor);
  return copy;
}

void check_operand(const Tensor& tensor, const char* name, DType wanted, bool quantized) {
  if (!tensor.is_cpu()) {
    refuse(fmt::format(
        "{} is not on the CPU, where the packed weight is; move it with .to(\"cpu\")", name));
  }
  const DType dtype = dtype_of(tensor, name);
  if (dtype == wanted) return;
  refuse(fmt::format(
      "{} is {}, the packed weight is {}{}: both must be the same; convert {} with .to(torch.{})",
      name, dtype_name(dtype), dtype_name(wanted), quantized ? " in eight bits" : "", name,
      dtype_name(wanted)));
}

void check_bias(const Tensor& bias, const PackedView& weight) {
  const auto sizes = sizes_of(bias);
  if (sizes.size() == 1 && sizes[0] == weight.out()) return;
  refuse(fmt::format("bias has shape {}, the packed weight has {} filters: [out] is accepted",
                     shape_text(sizes), weight.out()));
}

/// What the caller recorded of the weight must be what it is.
void check_record(const PackedView& weight, std::int64_t layout, std::int64_t out,
                  const std::vector<std::int64_t>& kernel) {
  const PackedHeader& h = weight.header();
  if (h.kernel_h == 0) {
    refuse(
        fmt::format("the packed weight is a [{}, {}] matrix, not a convolution's; use it with "
                    "torch.nn.functional.linear, or pack four dimensions",
                    weight.out(), weight.in()));
  }
  if (layout == static_cast<std::int64_t>(weight.layout()) && out == weight.out() &&
      kernel.size() == 2 && kernel[0] == h.kernel_h && kernel[1] == h.kernel_w) {
    return;
  }
  refuse(
      fmt::format("layout {}, out {} and kernel {} do not describe the packed weight, which has "
                  "layout {}, {} filters and a {}×{} kernel; pass what it says",
                  layout, out, shape_text(kernel), static_cast<int>(weight.layout()), weight.out(),
                  h.kernel_h, h.kernel_w));
}

void check_input(const Images& x, const PackedView& weight) {
  const std::int64_t channels = weight.in() / weight.taps();
  if (x.sizes[1] == channels) return;
  refuse(
      fmt::format("x has shape {}, the packed weight takes {} channels: x must be [images, {}, "
                  "height, width] or [{}, height, width]",
                  shape_text(sizes_of(x.tensor)), channels, channels, channels));
}

std::array<std::int64_t, 2> checked_pair(const std::vector<std::int64_t>& pair, const char* name,
                                         std::int64_t least) {
  if (pair.size() == 2 && pair[0] >= least && pair[1] >= least) return {pair[0], pair[1]};
  refuse(fmt::format("{} is {}: two numbers (height, width) of at least {} are accepted", name,
                     shape_text(pair), least));
}

Conv2dShape shape_of(const PackedView& weight, const Conv2dLayer& layer, const Sizes& x) {
  const Conv2dShape s = conv2d_shape(weight, layer, x[0], x[2], x[3]);
  if (s.out_height() < 1 || s.out_width() < 1) {
    refuse(
        fmt::format("x has shape {}: the kernel {}×{} with dilation {}×{} is larger than the "
                    "padded input {}×{}",
                    shape_text(x), s.kernel_h, s.kernel_w, s.dilation_h, s.dilation_w,
                    s.height + s.pad_top + s.pad_bottom, s.width + s.pad_left + s.pad_right));
  }
  return s;
}

Tensor padded(const Tensor& x, const Conv2dLayer& layer) {
  const std::array<std::int64_t, 4> sides{layer.pad_left, layer.pad_right, layer.pad_top,
                                          layer.pad_bottom};
  return torch::stable::pad(x, {sides.data(), sides.size()});
}

/// The weight and the numbers of a call.
struct Weight {
  const Tensor& packed;
  std::int64_t layout;
  std::int64_t out;
  const std::vector<std::int64_t>& kernel;
  const std::optional<Tensor>& scale;  ///< of int8 values, else none
};

/// What is added and applied, and a dense copy of the weight.
struct Operands {
  const std::optional<Tensor>& bias;
  std::int64_t activation;
  const std::optional<Tensor>& residual;
  const std::optional<Tensor>& dense;
};

/// The scales of a quantized call, in memory that lives as long as it.
struct CallScales {
  Tensor x;
  Tensor weight;

  /// `was_int8`: X holds whole numbers of steps, so that its own scale moves to the weight's.
  CallScales(const Tensor& weight_scale, const Int8Scales& scales, bool was_int8, Conv2dArgs& args)
      : x(empty(std::array<std::int64_t, 1>{args.shape.images}, DType::kFloat32)),
        weight(weight_scale) {
    auto* x_scale = static_cast<float*>(x.mutable_data_ptr());
    if (was_int8) {
      std::fill_n(x_scale, args.shape.images, 1.0f);
      weight = empty(sizes_of(weight_scale), DType::kFloat32);
      const auto* from = static_cast<const float*>(weight_scale.const_data_ptr());
      std::transform(from, from + weight_scale.numel(),
                     static_cast<float*>(weight.mutable_data_ptr()),
                     [&](float scale) { return scale * scales.x; });
    } else {
      image_scales(args, x_scale);
      // An image with NaN or an infinity keeps its NaN.
      if (scales.x > 0.0f) {
        std::replace_if(
            x_scale, x_scale + args.shape.images, [](float scale) { return !std::isnan(scale); },
            scales.x);
      }
    }
    args.x_scale = x_scale;
    args.weight_scale = static_cast<const float*>(weight.const_data_ptr());
  }
};

/// Results as the int8 inputs of the next layer, in the same memory format.
Tensor as_int8(const Tensor& y, const Sizes& sizes, bool channels_last, float scale) {
  Tensor q = y.dim() == 3 ? empty(sizes_of(y), DType::kInt8)
                          : empty_images(sizes, channels_last, DType::kInt8);
  requantize(static_cast<const float*>(y.const_data_ptr()), y.numel(), scale,
             static_cast<std::int8_t*>(q.mutable_data_ptr()), torch_threads());
  return q;
}

Tensor convolve(const Tensor& given, const Weight& w, const ConvNumbers& numbers,
                const Operands& operands, const Int8Scales& scales) {
  const PackedTensor packed_tensor(w.packed);
  const PackedView& weight = packed_tensor.view();
  check_record(weight, w.layout, w.out, w.kernel);
  const bool quantized = w.scale.has_value();
  if (quantized) check_scale(*w.scale, weight);
  const bool is_int8 = scales.x > 0.0f && dtype_of(given, "x") == DType::kInt8;
  const Tensor x = is_int8 ? torch::stable::to(given, ScalarType::Float) : given;
  // A quantized layer's activations are what its weight stood for.
  const DType dtype = quantized ? DType::kFloat32 : weight.dtype();
  check_operand(x, "x", dtype, quantized);
  const Images images = as_images(x);
  check_input(images, weight);
  const Conv2dLayer layer = checked_layer(numbers);

  Conv2dArgs args{.weight = weight, .shape = shape_of(weight, layer, images.sizes)};
  args.parallel = torch_threads();
  args.activation = checked_activation(operands.activation);
  const Sizes y_sizes{args.shape.images, w.out, args.shape.out_height(), args.shape.out_width()};
  const auto y_shape = std::span(y_sizes).subspan(x.dim() == 3 ? 1 : 0);
  const auto& [bias, activation, residual, dense] = operands;

  std::optional<Tensor> bias_row;
  if (bias) {
    check_operand(*bias, "bias", dtype, quantized);
    check_bias(*bias, weight);
    bias_row = bias->is_contiguous() ? *bias : as_contiguous(*bias);
    args.bias = bias_row->const_data_ptr();
  }
  std::optional<Tensor> addend;
  if (residual) {
    check_operand(*residual, "residual", dtype, quantized);
    if (!std::ranges::equal(sizes_of(*residual), y_shape)) {
      refuse(fmt::format("residual has shape {}, the result {}: both must be the same",
                         shape_text(sizes_of(*residual)), shape_text(y_shape)));
    }
    addend = in_format(*residual, y_sizes, images.channels_last);
    args.residual = addend->const_data_ptr();
  }
  if (dense && !is_int8 && scales.y == 0.0f) {
    check_operand(*dense, "dense", dtype, quantized);
    check_dense_conv2d(*dense, weight);
    if (choose_conv2d_kernel(weight, args.shape.pixels()) == nullptr) {
      const Tensor y = dense_conv2d(x, *dense, bias, layer, args.activation, residual);
      return in_format(y, y_sizes, images.channels_last);
    }
  }

  Tensor y =
      x.dim() == 3 ? empty(y_shape, dtype) : empty_images(y_sizes, images.channels_last, dtype);
  if (y.numel() > 0) {
    const Sizes y_strides = image_strides(y_sizes, images.channels_last);
    args.x = images.tensor.const_data_ptr();
    args.x_strides = images.strides();
    args.y = y.mutable_data_ptr();
    args.y_strides = {y_strides[0], y_strides[1], y_strides[2], y_strides[3]};
    std::optional<CallScales> call_scales;
    if (quantized) call_scales.emplace(*w.scale, scales, is_int8, args);
    run_conv2d(args);
  }
  return scales.y > 0.0f ? as_int8(y, y_sizes, images.channels_last, scales.y) : y;
}

}  // namespace

Tensor empty_images(const Sizes& sizes, bool channels_last, DType dtype) {
  const Sizes strides = image_strides(sizes, channels_last);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, sizes.data(), strides.data(),
                                                  shim_dtype(dtype), aoti_torch_device_type_cpu(),
                                                  0, &handle));
  return Tensor(handle);
}

Conv2dLayer checked_layer(const ConvNumbers& numbers) {
  Conv2dLayer layer;
  const auto stride = checked_pair(numbers.stride, "stride", 1);
  const auto dilation = checked_pair(numbers.dilation, "dilation", 1);
  layer.stride_h = stride[0];
  layer.stride_w = stride[1];
  layer.dilation_h = dilation[0];
  layer.dilation_w = dilation[1];
  const auto& padding = numbers.padding;
  const bool is_negative =
      std::any_of(padding.begin(), padding.end(), [](std::int64_t side) { return side < 0; });
  if (is_negative || (padding.size() != 2 && padding.size() != 4)) {
    refuse(
        fmt::format("padding is {}: two numbers (height, width) or four (top, bottom, left, "
                    "right), none negative, are accepted",
                    shape_text(padding)));
  }
  const bool four = padding.size() == 4;
  layer.pad_top = padding[0];
  layer.pad_bottom = padding[four ? 1 : 0];
  layer.pad_left = padding[four ? 2 : 1];
  layer.pad_right = padding[four ? 3 : 1];
  return layer;
}

void check_dense_conv2d(const Tensor& dense, const PackedView& weight) {
  const auto sizes = sizes_of(dense);
  const PackedHeader& h = weight.header();
  if (sizes.size() == 4 && sizes[0] == weight.out() && sizes[1] * weight.taps() == weight.in() &&
      sizes[2] == h.kernel_h && sizes[3] == h.kernel_w) {
    return;
  }
  refuse(fmt::format(
      "dense has shape {}, the packed weight is [{}, {}] with a {}×{} kernel: the "
      "dense copy must be [out, in, height, width] of the same",
      shape_text(sizes), weight.out(), weight.in() / weight.taps(), h.kernel_h, h.kernel_w));
}

Tensor dense_conv2d(const Tensor& x, const Tensor& dense, const std::optional<Tensor>& bias,
                    const Conv2dLayer& layer, Activation activation,
                    const std::optional<Tensor>& residual) {
  using torch::stable::detail::from;
  const bool even = layer.pad_top == layer.pad_bottom && layer.pad_left == layer.pad_right;
  const Tensor input = even ? x : padded(x, layer);
  const std::array<std::int64_t, 2> stride{layer.stride_h, layer.stride_w};
  const std::array<std::int64_t, 2> padding{even ? layer.pad_top : 0, even ? layer.pad_left : 0};
  const std::array<std::int64_t, 2> dilation{layer.dilation_h, layer.dilation_w};
  const auto list = [](const std::array<std::int64_t, 2>& pair) {
    return from(torch::headeronly::IntHeaderOnlyArrayRef(pair.data(), pair.size()));
  };
  std::array<StableIValue, 7> stack{from(input),          from(dense),   from(bias),
                                    list(stride),         list(padding), list(dilation),
                                    from(std::int64_t{1})};
  Tensor y = call("aten::conv2d", stack.data());
  if (residual) y = add(y, *residual);
  return activated(std::move(y), activation);
}

Tensor conv2d(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::vector<std::int64_t>& kernel, const std::vector<std::int64_t>& stride,
              const std::vector<std::int64_t>& padding, const std::vector<std::int64_t>& dilation,
              const std::optional<Tensor>& bias, std::int64_t activation,
              const std::optional<Tensor>& residual, const std::optional<Tensor>& dense,
              const std::optional<Tensor>& scale) {
  return guarded([&] {
    return convolve(x, {packed, layout, out, kernel, scale}, {stride, padding, dilation},
                    {bias, activation, residual, dense}, {});
  });
}

Tensor conv2d_int8(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                   const std::vector<std::int64_t>& kernel, const std::vector<std::int64_t>& stride,
                   const std::vector<std::int64_t>& padding,
                   const std::vector<std::int64_t>& dilation, const Tensor& scale, double x_scale,
                   double y_scale, const std::optional<Tensor>& bias, std::int64_t activation,
                   const std::optional<Tensor>& residual, const std::optional<Tensor>& dense) {
  return guarded([&] {
    const Int8Scales scales = checked_scales(x_scale, y_scale);
    if (scales.x == 0.0f && dtype_of(x, "x") == DType::kInt8) {
      refuse("x is int8 and x_scale is 0: the scale that x was rounded with is needed");
    }
    const std::optional<Tensor> weight_scale(scale);
    return convolve(x, {packed, layout, out, kernel, weight_scale}, {stride, padding, dilation},
                    {bias, activation, residual, dense}, scales);
  });
}

}  // namespace gossamer::door
