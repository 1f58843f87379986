// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual): checks, one allocation, one call of the core. Every check here
// is a comparison of integers; text is made only to be thrown.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "gossamer/linear.h"
#include "torch/ops.h"
#include "torch/rows.h"

namespace gossamer::door {
namespace {

void check_dtype(const Tensor& tensor, const char* name, DType weight) {
  const DType dtype = dtype_of(tensor, name);
  if (dtype == weight) return;
  refuse(fmt::format(
      "{} is {}, the packed weight is {}: both must be the same; convert {} with "
      ".to(torch.{}), or the model with .to(torch.{})",
      name, dtype_name(dtype), dtype_name(weight), name, dtype_name(weight), dtype_name(dtype)));
}

/// `features`: what `tensor` must have last; inputs for x, outputs for a gradient.
void check_rows(const Tensor& tensor, const char* name, const PackedView& weight,
                std::int64_t features) {
  const auto sizes = sizes_of(tensor);
  if (sizes.empty() || sizes.back() != features) {
    refuse(fmt::format(
        "{} has shape {}, the packed weight is [{}, {}] ([out, in]): {} must be [..., {}]", name,
        shape_text(sizes), weight.out(), weight.in(), name, features));
  }
  if (weight.batch() != 1 && (sizes.size() != 3 || sizes[0] != weight.batch())) {
    refuse(fmt::format(
        "{} has shape {}, the packed weight is a stack of {}: {} must be [{}, tokens, {}]", name,
        shape_text(sizes), weight.batch(), name, weight.batch(), features));
  }
}

/// What the caller recorded of the weight must be what it is.
void check_record(const PackedView& weight, std::int64_t layout, const char* name,
                  std::int64_t recorded, std::int64_t actual) {
  if (recorded == actual && layout == static_cast<std::int64_t>(weight.layout())) return;
  refuse(fmt::format(
      "layout {} and {} {} do not describe the packed weight, which has layout {} and is "
      "[{}, {}] ([out, in]); pass what it says",
      layout, name, recorded, static_cast<int>(weight.layout()), weight.out(), weight.in()));
}

void check_matrix(const PackedView& weight) {
  if (weight.header().kernel_h == 0) return;
  refuse(fmt::format(
      "the packed weight is a convolution's with a {}×{} kernel, not a matrix: use it with "
      "torch.nn.functional.conv2d, or unpack it",
      weight.header().kernel_h, weight.header().kernel_w));
}

bool equal(std::span<const std::int64_t> a, std::span<const std::int64_t> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

/// An optional operand: on the CPU and of the weight's dtype.
void check_operand(const Tensor& tensor, const char* name, const PackedView& weight) {
  if (!tensor.is_cpu()) {
    refuse(fmt::format(
        "{} is not on the CPU, where the packed weight is; move it with .to(\"cpu\")", name));
  }
  check_dtype(tensor, name, weight.dtype());
}

}  // namespace

void check_linear_call(const Tensor& x, const PackedView& weight, std::int64_t layout,
                       std::int64_t out) {
  check_matrix(weight);
  check_rows(x, "x", weight, weight.in());
  check_record(weight, layout, "out", out, weight.out());
}

void check_linear_bias(const Tensor& bias, const PackedView& weight) {
  const auto sizes = sizes_of(bias);
  const bool fits = weight.batch() == 1 ? sizes.size() == 1 && sizes[0] == weight.out()
                                        : sizes.size() == 2 && sizes[0] == weight.batch() &&
                                              sizes[1] == weight.out();
  if (fits) return;
  refuse(fmt::format(
      "bias has shape {}, the packed weight has {} outputs and batch {}: [out] is accepted, "
      "[batch, out] for a stack",
      shape_text(sizes), weight.out(), weight.batch()));
}

void check_linear_residual(const Tensor& residual, std::span<const std::int64_t> y_shape) {
  if (equal(sizes_of(residual), y_shape)) return;
  refuse(fmt::format("residual has shape {}, the result {}: both must be the same; expand it first",
                     shape_text(sizes_of(residual)), shape_text(y_shape)));
}

void check_dense(const Tensor& dense, const PackedView& weight) {
  const auto sizes = sizes_of(dense);
  const std::size_t dims = weight.batch() == 1 ? 2 : 3;
  if (sizes.size() == dims && sizes[dims - 1] == weight.in() && sizes[dims - 2] == weight.out() &&
      (dims == 2 || sizes[0] == weight.batch())) {
    return;
  }
  refuse(fmt::format(
      "dense has shape {}, the packed weight is [{}, {}, {}] ([batch, out, in]): the dense "
      "copy must have the same shape",
      shape_text(sizes), weight.batch(), weight.out(), weight.in()));
}

Tensor linear(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
              std::int64_t activation, const std::optional<Tensor>& residual,
              const std::optional<Tensor>& dense) {
  return guarded([&] {
    const PackedTensor packed_tensor(packed);
    const PackedView& weight = packed_tensor.view();
    const bool batched = weight.batch() != 1;
    check_linear_call(x, weight, layout, out);
    if (scale) {
      return linear_quantized(x, weight, *scale, {}, dtype_of(x, "x"), bias,
                              checked_activation(activation), residual, dense);
    }
    check_dtype(x, "x", weight.dtype());
    const auto x_sizes = sizes_of(x);
    const Shape y_shape(x_sizes, out);

    LinearArgs args{.weight = weight, .parallel = torch_threads()};
    args.activation = checked_activation(activation);
    args.tokens = 1;
    for (std::size_t i = batched ? 1 : 0; i + 1 < x_sizes.size(); ++i) args.tokens *= x_sizes[i];

    std::optional<Tensor> bias_rows;
    if (bias) {
      check_operand(*bias, "bias", weight);
      check_linear_bias(*bias, weight);
      bias_rows = bias->is_contiguous() ? *bias : as_contiguous(*bias);
      args.bias = bias_rows->const_data_ptr();
    }
    std::optional<Rows> residual_rows;
    if (residual) {
      check_operand(*residual, "residual", weight);
      check_linear_residual(*residual, y_shape.span());
      residual_rows = as_rows(*residual, batched);
      args.residual = residual_rows->tensor.const_data_ptr();
      args.residual_stride = residual_rows->stride;
      args.residual_batch_stride = residual_rows->batch_stride;
    }
    if (dense) {
      check_operand(*dense, "dense", weight);
      check_dense(*dense, weight);
      if (choose_kernel(weight, args.tokens, args.parallel.threads) == nullptr) {
        return dense_linear(x, *dense, bias, args.activation, residual);
      }
    }

    Tensor y = empty(y_shape.span(), weight.dtype());
    if (args.tokens == 0 || out == 0) return y;
    const Rows x_rows = as_rows(x, batched);
    args.x = x_rows.tensor.const_data_ptr();
    args.x_stride = x_rows.stride;
    args.x_batch_stride = x_rows.batch_stride;
    args.y = y.mutable_data_ptr();
    args.y_stride = out;
    args.y_batch_stride = args.tokens * out;
    run_linear(args);
    return y;
  });
}

Tensor linear_plain(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                    const std::optional<Tensor>& bias) {
  return linear(x, packed, layout, out, {}, bias, 0, {}, {});
}

Tensor linear_dx(const Tensor& grad, const Tensor& packed, std::int64_t layout, std::int64_t inputs,
                 const std::optional<Tensor>& dense) {
  return guarded([&] {
    const PackedTensor packed_tensor(packed);
    const PackedView& weight = packed_tensor.view();
    check_matrix(weight);
    check_rows(grad, "grad", weight, weight.out());
    check_record(weight, layout, "inputs", inputs, weight.in());
    check_dtype(grad, "grad", weight.dtype());
    if (dense) {
      check_operand(*dense, "dense", weight);
      check_dense(*dense, weight);
      return torch::stable::matmul(grad, *dense);
    }
    const std::array<std::int64_t, 3> shape{weight.batch(), weight.out(), weight.in()};
    Tensor values = empty(std::span(shape).subspan(weight.batch() == 1 ? 1 : 0), weight.dtype());
    unpack(weight, mutable_matrix_view(values, "values"));
    return torch::stable::matmul(grad, values);
  });
}

}  // namespace gossamer::door
