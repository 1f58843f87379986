// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) on a GPU: checks, one allocation, one launch on the current
// stream. Nothing waits, nothing is read back.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "core/layouts.h"
#include "core/nm24_tile.h"
#include "cuda/linear_sp24.h"
#include "torch/cuda_choice.h"
#include "torch/cuda_layout_argument.h"
#include "torch/cuda_packed.h"
#include "torch/dense.h"
#include "torch/ops_cuda.h"
#include "torch/rows.h"

namespace gossamer::door::cuda_ops {
namespace {

using cuda::LinearSp24Args;
using cuda::LinearSp24Kernel;

bool equal(std::span<const std::int64_t> a, std::span<const std::int64_t> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

/// What the tensors say of the weight; its header is on the GPU and not read.
struct Weight {
  DType dtype;
  std::int64_t batch;
  std::int64_t out;
  std::int64_t in;
  std::int64_t matrix_bytes;  ///< of one matrix of a stack
};

bool has_16_bits(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

void check_16_bits(const Tensor& tensor, const char* name) {
  const DType dtype = dtype_of(tensor, name);
  if (has_16_bits(dtype)) return;
  refuse(
      fmt::format("{} is {}: float16 and bfloat16 are multiplied on a GPU; convert the model "
                  "with .to(torch.bfloat16)",
                  name, dtype_name(dtype)));
}

void check_8_bits(const Tensor& tensor, const char* name) {
  const DType dtype = dtype_of(tensor, name);
  if (dtype == DType::kFloat8E4M3 || dtype == DType::kInt8) return;
  refuse(
      fmt::format("{} is {}: quantized products take float8_e4m3fn and int8; "
                  "torch.ops.gossamer.quantize_rows makes either",
                  name, dtype_name(dtype)));
}

/// In the words of the CPU (ops_linear.cpp).
void check_told_dtype(std::int64_t argument, const Tensor& x, const char* name, bool quantized) {
  const std::optional<DType> told = told_dtype(argument, quantized);
  const DType dtype = dtype_of(x, name);
  if (!told || *told == dtype) return;
  const std::string remedy =
      quantized ? fmt::format("quantize {} as torch.{}", name, dtype_name(*told))
                : fmt::format("convert {} with .to(torch.{}), or the model with .to(torch.{})",
                              name, dtype_name(*told), dtype_name(dtype));
  refuse(fmt::format("{} is {}, the packed weight is {}: both must be the same; {}", name,
                     dtype_name(dtype), dtype_name(*told), remedy));
}

/// `x`: what is multiplied, [..., features]; finds whether `packed` is one matrix or a stack.
Weight describe_weight(const Tensor& x, const char* name, const Tensor& packed, std::int64_t out,
                       std::int64_t in) {
  Weight weight{dtype_of(x, name), 1, out, in, 0};
  const auto bytes_for = [&](std::int64_t batch) {
    return detail::layout_spec(tiles_info(weight.dtype, batch, out, in, false), 0).total_bytes;
  };
  const auto element = static_cast<int>(dtype_bytes(weight.dtype));
  weight.matrix_bytes = detail::nm24_row_tiles(out) * detail::nm24_input_tiles(in, element) *
                        detail::nm24_tile_bytes(element);
  const std::int64_t bytes = packed.numel();
  if (bytes == bytes_for(1)) return weight;
  const auto sizes = sizes_of(x);
  if (sizes.size() == 3 && sizes[0] > 1 && bytes == bytes_for(sizes[0])) {
    weight.batch = sizes[0];
    return weight;
  }
  refuse(fmt::format(
      "packed has {} bytes; a {} weight [{}, {}] ([out, in]) in layout nm24_tiles has {}: {} must "
      "be [..., in], and out what the packed weight has",
      bytes, dtype_name(weight.dtype), out, in, bytes_for(1), name));
}

void check_operand(const Tensor& tensor, const char* name, const Tensor& packed, DType dtype,
                   std::span<const std::int64_t> shape) {
  check_device(tensor, name, packed);
  if (dtype_of(tensor, name) != dtype || !equal(sizes_of(tensor), shape)) {
    refuse(fmt::format("{} is {} {}; expected {} {}", name, dtype_name(dtype_of(tensor, name)),
                       shape_text(sizes_of(tensor)), dtype_name(dtype), shape_text(shape)));
  }
}

/// Sizes that kernels count in 32 bits.
void check_sizes(const LinearSp24Args& args) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (args.tokens < kMost && args.out < kMost && args.in < kMost) return;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("{} tokens, {} outputs, {} inputs: fewer than 2^30 of each are computed in "
                  "one call; split x",
                  args.tokens, args.out, args.in));
}

void check_inputs(std::int64_t argument, const Tensor& packed,
                  std::span<const std::int64_t> x_sizes, std::int64_t out, int element_bytes) {
  const bool is_stack = has_bit(argument, kStackShift);
  const std::int64_t batch =
      is_stack && !x_sizes.empty() ? std::max<std::int64_t>(x_sizes[0], 1) : 1;
  const std::int64_t told = told_inputs(argument, packed, out, batch, element_bytes);
  if (told == 0 || (told == x_sizes.back() && (!is_stack || x_sizes.size() == 3))) return;
  refuse(
      fmt::format("x has shape {}, the packed weight is {}[{}, {}] ([out, in]): x must be {}[..., "
                  "{}]",
                  shape_text(x_sizes), is_stack ? "a stack of " : "", out, told,
                  is_stack ? "a stack too, " : "", told));
}

/// `x`: [..., inputs], or of a stack [batch, tokens, inputs].
void check_dense(const Tensor& dense, const Tensor& x, const char* x_name, const Tensor& packed,
                 std::int64_t out, std::int64_t in) {
  check_device(dense, "dense", packed);
  const auto x_sizes = sizes_of(x);
  const auto sizes = sizes_of(dense);
  const bool is_stack = sizes.size() == 3 && x_sizes.size() == 3 && sizes[0] == x_sizes[0];
  const bool fits = (sizes.size() == 2 || is_stack) && sizes[sizes.size() - 2] == out &&
                    sizes.back() == in && dtype_of(dense, "dense") == dtype_of(x, x_name);
  if (fits) return;
  refuse(
      fmt::format("dense, the weight's dense copy, is {} {}, {} is {} {} and the weight [{}, {}] "
                  "([out, in]): dense must be of its shape and of {}'s dtype",
                  dtype_name(dtype_of(dense, "dense")), shape_text(sizes), x_name,
                  dtype_name(dtype_of(x, x_name)), shape_text(x_sizes), out, in, x_name));
}

LinearSp24Args args_of(const Weight& weight, const Tensor& x, std::int64_t tokens) {
  LinearSp24Args args;
  args.dtype = weight.dtype;
  args.y_dtype = has_16_bits(weight.dtype) ? weight.dtype : DType::kBFloat16;
  args.out = weight.out;
  args.in = weight.in;
  args.tokens = tokens;
  args.x = x.const_data_ptr();
  return args;
}

}  // namespace

namespace {

/// What both products are given; see LinearSp24Args.
struct Call {
  const Tensor& x;
  const Tensor& packed;
  std::int64_t layout;
  std::int64_t out;
  const std::optional<Tensor>& bias;
  std::int64_t activation;
  const std::optional<Tensor>& residual;
  const std::optional<Tensor>& x_scale;
  const std::optional<Tensor>& weight_scale;
  DType y_dtype;
  DType bias_dtype;  ///< which the bias may have instead of y_dtype
  bool accurate;
};

/// A scale for each of `count` tokens or outputs, contiguous.
const float* scale_of(const std::optional<Tensor>& scale, const char* name, const Tensor& packed,
                      std::int64_t count) {
  if (!scale) return nullptr;
  check_device(*scale, name, packed);
  if (dtype_of(*scale, name) != DType::kFloat32 || scale->numel() != count ||
      !scale->is_contiguous()) {
    refuse(fmt::format("{} is {} {}; expected {} float32 numbers, contiguous", name,
                       dtype_name(dtype_of(*scale, name)), shape_text(sizes_of(*scale)), count));
  }
  return static_cast<const float*>(scale->const_data_ptr());
}

Tensor multiply(const Call& call) {
  const OnDevice device(call.packed);
  const Tensor& x = call.x;
  const Tensor& packed = call.packed;
  const std::int64_t out = call.out;
  check_layout(call.layout);
  const auto x_sizes = sizes_of(x);
  if (x_sizes.empty()) refuse("x has no dimensions; [..., in] is accepted");
  check_inputs(call.layout, packed, x_sizes, out, static_cast<int>(dtype_bytes(dtype_of(x, "x"))));
  const Weight weight = describe_weight(x, "x", packed, out, x_sizes.back());
  const Activation activation = checked_activation(call.activation);
  const bool batched = weight.batch != 1;
  const Shape y_shape(x_sizes, out);
  Tensor y = empty_on(packed, y_shape.span(), call.y_dtype);

  std::int64_t tokens = 1;
  for (std::size_t i = batched ? 1 : 0; i + 1 < x_sizes.size(); ++i) tokens *= x_sizes[i];
  const Rows x_rows = as_rows(x, batched);
  LinearSp24Args args = args_of(weight, x_rows.tensor, tokens);
  check_sizes(args);
  args.y_dtype = call.y_dtype;
  args.x_stride = x_rows.stride;
  args.y_stride = out;
  args.activation = activation;
  args.accurate_sums = call.accurate;
  args.tuned_row = tuned_row(call.layout, tokens, weight.dtype);
  args.stream = device.stream();
  // Whatever writes a packed weight ends with publish_ or its like; a copy made here (below) does
  // not (docs/kernels/sm90_sp24.md, "Overwriting a weight").
  args.weight_is_constant = is_aligned(packed);

  std::optional<Tensor> bias_rows;
  if (call.bias) {
    const std::array<std::int64_t, 2> shape{weight.batch, out};
    args.bias_dtype =
        dtype_of(*call.bias, "bias") == call.bias_dtype ? call.bias_dtype : call.y_dtype;
    check_operand(*call.bias, "bias", packed, args.bias_dtype,
                  std::span(shape).subspan(batched ? 0 : 1));
    bias_rows = call.bias->is_contiguous() ? *call.bias : as_contiguous(*call.bias);
  }
  std::optional<Rows> residual_rows;
  if (call.residual) {
    check_operand(*call.residual, "residual", packed, call.y_dtype, y_shape.span());
    residual_rows = as_rows(*call.residual, batched);
    args.residual_stride = residual_rows->stride;
  }
  const float* const x_scale = scale_of(call.x_scale, "x_scale", packed, weight.batch * tokens);
  const float* const weight_scale =
      scale_of(call.weight_scale, "weight_scale", packed, weight.batch * out);
  if (tokens == 0 || out == 0) return y;

  const Tensor tiles = aligned(packed);
  const std::int64_t y_bytes = dtype_bytes(args.y_dtype);
  const auto at = [](const Tensor& tensor, std::int64_t byte) {
    return static_cast<const std::byte*>(tensor.const_data_ptr()) + byte;
  };
  const cuda::DeviceInfo& info = cuda::known_device(device.index());
  for (std::int64_t b = 0; b < weight.batch; ++b) {
    args.tiles = static_cast<const std::byte*>(tiles.const_data_ptr()) + sizeof(PackedHeader) +
                 b * weight.matrix_bytes;
    args.x = at(x_rows.tensor, b * x_rows.batch_stride * dtype_bytes(weight.dtype));
    args.y = static_cast<std::byte*>(y.mutable_data_ptr()) + y_bytes * b * tokens * out;
    if (x_scale != nullptr) args.x_scale = x_scale + b * tokens;
    if (weight_scale != nullptr) args.weight_scale = weight_scale + b * out;
    if (bias_rows) args.bias = at(*bias_rows, dtype_bytes(args.bias_dtype) * b * out);
    if (residual_rows) {
      args.residual = at(residual_rows->tensor, y_bytes * b * residual_rows->batch_stride);
    }
    const LinearSp24Kernel& row = choose_row(args, info);
    row.launch(row, args, info);
  }
  return y;
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
              std::int64_t activation, const std::optional<Tensor>& residual,
              const std::optional<Tensor>& dense) {
  return guarded([&] {
    check_device(x, "x", packed);
    check_16_bits(x, "x");
    if (!scale) check_told_dtype(layout, x, "x", false);
    const auto x_sizes = sizes_of(x);
    const DType x_dtype = dtype_of(x, "x");
    const DType y_dtype = result_dtype(layout, x_dtype);
    // A dense product would be rounded to x's dtype on the way.
    if (dense && y_dtype == x_dtype && !x_sizes.empty() && x_sizes.back() != 0 &&
        runs_dense(layout, x.numel() / x_sizes.back()) && !is_row_forced()) {
      check_dense(*dense, x, "x", packed, out, x_sizes.back());
      return dense_linear(x, *dense, bias, checked_activation(activation), residual);
    }
    if (scale) {
      const bool is_float8 = has_bit(layout, kFloat8Shift);
      const auto values = is_float8 ? ScalarType::Float8_e4m3fn : ScalarType::Char;
      const auto [q, x_scale] = quantize_rows(x, values);
      return multiply({q, packed, layout, out, bias, activation, residual, x_scale, scale, y_dtype,
                       x_dtype, has_bit(layout, kAccurateShift)});
    }
    return multiply({x, packed, layout, out, bias, activation, residual, scale, scale, y_dtype,
                     x_dtype, false});
  });
}

Tensor linear_quantized(const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
                        std::int64_t layout, std::int64_t out,
                        const std::optional<Tensor>& weight_scale,
                        const std::optional<Tensor>& bias, std::int64_t activation,
                        const std::optional<Tensor>& residual, ScalarType dtype, bool accurate) {
  return guarded([&] {
    check_device(x, "x", packed);
    check_8_bits(x, "x");
    check_told_dtype(layout, x, "x", true);
    const DType y_dtype = from_scalar_type(dtype);
    if (!has_16_bits(y_dtype) && y_dtype != DType::kFloat32) {
      refuse(
          fmt::format("dtype {}: the result is float16, bfloat16 or float32", dtype_name(y_dtype)));
    }
    return multiply({x, packed, layout, out, bias, activation, residual, x_scale, weight_scale,
                     y_dtype, y_dtype, accurate});
  });
}

Tensor linear_plain(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                    const std::optional<Tensor>& bias) {
  return linear(x, packed, layout, out, {}, bias, 0, {}, {});
}

Tensor linear_dx(const Tensor& grad, const Tensor& packed, std::int64_t layout, std::int64_t inputs,
                 const std::optional<Tensor>& dense) {
  return guarded([&] {
    check_device(grad, "grad", packed);
    check_layout(layout);
    const auto sizes = sizes_of(grad);
    if (sizes.empty()) refuse("grad has no dimensions; [..., out] is accepted");
    check_16_bits(grad, "grad");
    check_told_dtype(layout, grad, "grad", false);
    const Weight weight = describe_weight(grad, "grad", packed, sizes.back(), inputs);
    const std::int64_t told = told_inputs(layout, packed, weight.out, weight.batch, 2);
    if (told != 0 && told != inputs) {
      refuse(fmt::format("inputs is {}, the packed weight has {}; pass what it has", inputs, told));
    }
    if (dense) {
      check_dense(*dense, grad, "grad", packed, weight.out, inputs);
      return torch::stable::matmul(grad, *dense);
    }
    const FormatInfo info = tiles_info(weight.dtype, weight.batch, weight.out, weight.in, false);
    // Told the dtype, the header has nothing to add but a wait for the GPU.
    if (!told_dtype(layout, false)) check_header(packed, info);
    return torch::stable::matmul(grad, unpacked_tiles(packed, info));
  });
}

std::string cuda_kernel(const Tensor& x, std::int64_t out, std::int64_t layout) {
  return guarded([&] {
    const OnDevice device(x);
    const Rows rows = as_rows(x, false);
    const std::int64_t in = sizes_of(x).back();
    const Weight weight{dtype_of(x, "x"), 1, out, in, 0};
    LinearSp24Args args = args_of(weight, rows.tensor, in == 0 ? 0 : x.numel() / in);
    args.x_stride = rows.stride;
    args.accurate_sums = !has_16_bits(weight.dtype) && has_bit(layout, kAccurateShift);
    args.tuned_row = tuned_row(layout, args.tokens, weight.dtype);
    const auto* row = cuda::choose_linear_sp24(args, cuda::known_device(device.index()));
    return row == nullptr ? std::string() : std::string(row->name);
  });
}

std::string cuda_kernel_table(const Tensor& x, std::int64_t out) {
  return guarded([&] {
    const OnDevice device(x);
    const Rows rows = as_rows(x, false);
    const std::int64_t in = sizes_of(x).back();
    const Weight weight{dtype_of(x, "x"), 1, out, in, 0};
    LinearSp24Args args = args_of(weight, rows.tensor, in == 0 ? 0 : x.numel() / in);
    args.x_stride = rows.stride;
    const cuda::DeviceInfo& info = cuda::known_device(device.index());
    std::string text = "[";
    for (const LinearSp24Kernel& row : cuda::linear_sp24_kernels()) {
      const std::string why = row.dtype == weight.dtype
                                  ? row.refuses(row, args, info)
                                  : "computes " + std::string(dtype_name(row.dtype));
      // JSON has no infinity.
      constexpr double kNever = 1e9;
      const double seconds = why.empty() ? std::min(row.seconds(row, args, info), kNever) : 0.0;
      text += fmt::format(
          R"({}{{"name": "{}", "dtype": "{}", "refuses": "{}", "seconds": {:.4e}, "row": {}, )"
          R"("table": {}}})",
          text.size() > 1 ? ", " : "", row.name, dtype_name(row.dtype), why, seconds,
          cuda::tuned_row_of(row), cuda::linear_sp24_table(row.dtype));
    }
    return text + "]";
  });
}

}  // namespace gossamer::door::cuda_ops
