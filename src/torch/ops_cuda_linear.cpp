// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) on a GPU: checks, one allocation, one launch on the current
// stream. Nothing waits, nothing is read back.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdlib>

#include "core/layouts.h"
#include "core/nm24_tile.h"
#include "cuda/linear_sp24.h"
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

// The argument `layout` may carry the weight's inputs above the layout's number: tiles are padded,
// so that the bytes alone do not tell 60 inputs from 64.
constexpr int kInputsShift = 16;

void check_layout(std::int64_t argument) {
  const std::int64_t layout = argument & ((std::int64_t{1} << kInputsShift) - 1);
  if (layout == static_cast<std::int64_t>(Layout::kNm24Tiles)) return;
  refuse(fmt::format(
      "layout {} is not computed on a GPU; layout {} (nm24_tiles, 2:4 weights in float16 or "
      "bfloat16) is: torch.ops.gossamer.convert(packed, \"nm24_tiles\")",
      layout, static_cast<int>(Layout::kNm24Tiles)));
}

/// `x`: what is multiplied, [..., features]; finds whether `packed` is one matrix or a stack.
Weight describe_weight(const Tensor& x, const char* name, const Tensor& packed, std::int64_t out,
                       std::int64_t in) {
  Weight weight{dtype_of(x, name), 1, out, in, 0};
  if (weight.dtype != DType::kBFloat16 && weight.dtype != DType::kFloat16) {
    refuse(
        fmt::format("{} is {}: float16 and bfloat16 are multiplied on a GPU; convert the model "
                    "with .to(torch.bfloat16)",
                    name, dtype_name(weight.dtype)));
  }
  const auto bytes_for = [&](std::int64_t batch) {
    return detail::layout_spec(tiles_info(weight.dtype, batch, out, in, false), 0).total_bytes;
  };
  weight.matrix_bytes =
      detail::nm24_row_tiles(out) * detail::nm24_input_tiles(in, 2) * detail::nm24_tile_bytes(2);
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

/// GOSSAMER_KERNEL forces a row.
const LinearSp24Kernel& choose(const LinearSp24Args& args, const cuda::DeviceInfo& device) {
  if (const char* forced = std::getenv("GOSSAMER_KERNEL"); forced != nullptr && *forced != '\0') {
    if (const LinearSp24Kernel* row = cuda::find_linear_sp24(forced)) {
      const std::string why = row->dtype == args.dtype
                                  ? row->refuses(*row, args, device)
                                  : "computes " + std::string(dtype_name(row->dtype));
      if (why.empty()) return *row;
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("GOSSAMER_KERNEL={}: the kernel {}", forced, why));
    }
  }
  const LinearSp24Kernel* const row = cuda::choose_linear_sp24(args, device);
  if (row != nullptr) return *row;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("no kernel multiplies 2:4 weights on {} (compute capability {}.{}); "
                          "kernels need 9.x: unpack the model with gossamer.desparsify_(model)",
                          device.name, device.compute_major, device.compute_minor));
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

void check_inputs(std::int64_t argument, std::span<const std::int64_t> x_sizes, std::int64_t out) {
  const std::int64_t recorded = argument >> kInputsShift;
  if (recorded == 0 || recorded == x_sizes.back()) return;
  refuse(
      fmt::format("x has shape {}, the packed weight is [{}, {}] ([out, in]): x must be [..., {}]",
                  shape_text(x_sizes), out, recorded, recorded));
}

bool is_aligned(const Tensor& tensor) {
  constexpr std::uintptr_t kAlignment = 16;
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
}

LinearSp24Args args_of(const Weight& weight, const Tensor& x, std::int64_t tokens) {
  LinearSp24Args args;
  args.dtype = weight.dtype;
  args.out = weight.out;
  args.in = weight.in;
  args.tokens = tokens;
  args.x = x.const_data_ptr();
  return args;
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
              std::int64_t activation, const std::optional<Tensor>& residual,
              const std::optional<Tensor>& dense) {
  return guarded([&] {
    check_device(x, "x", packed);
    const OnDevice device(packed);
    check_layout(layout);
    const auto x_sizes = sizes_of(x);
    if (x_sizes.empty()) refuse("x has no dimensions; [..., in] is accepted");
    check_inputs(layout, x_sizes, out);
    const Weight weight = describe_weight(x, "x", packed, out, x_sizes.back());
    if (scale) refuse("scale is reserved for quantized weights; pass None");
    if (dense) {
      refuse("a dense copy beside a packed weight is not used on a GPU; pass None");
    }
    if (activation != 0 && activation != 1) {
      refuse(fmt::format("activation {}: 0 (none) and 1 (relu) are accepted", activation));
    }
    const bool batched = weight.batch != 1;
    const Shape y_shape(x_sizes, out);
    Tensor y = empty_on(packed, y_shape.span(), weight.dtype);

    std::int64_t tokens = 1;
    for (std::size_t i = batched ? 1 : 0; i + 1 < x_sizes.size(); ++i) tokens *= x_sizes[i];
    const Rows x_rows = as_rows(x, batched);
    LinearSp24Args args = args_of(weight, x_rows.tensor, tokens);
    check_sizes(args);
    args.x_stride = x_rows.stride;
    args.y_stride = out;
    args.activation = static_cast<Activation>(activation);
    args.stream = device.stream();
    // Whatever writes a packed weight ends with a kernel of its own (ops_cuda_pack.cpp).
    args.weight_is_constant = true;

    std::optional<Tensor> bias_rows;
    if (bias) {
      const std::array<std::int64_t, 2> shape{weight.batch, out};
      check_operand(*bias, "bias", packed, weight.dtype, std::span(shape).subspan(batched ? 0 : 1));
      bias_rows = bias->is_contiguous() ? *bias : as_contiguous(*bias);
    }
    std::optional<Rows> residual_rows;
    if (residual) {
      check_operand(*residual, "residual", packed, weight.dtype, y_shape.span());
      residual_rows = as_rows(*residual, batched);
      args.residual_stride = residual_rows->stride;
    }
    if (tokens == 0 || out == 0) return y;

    const Tensor tiles = is_aligned(packed) ? packed : torch::stable::clone(packed);
    const auto at = [](const Tensor& tensor, std::int64_t element) {
      return static_cast<const std::byte*>(tensor.const_data_ptr()) + 2 * element;
    };
    const cuda::DeviceInfo& info = cuda::known_device(device.index());
    for (std::int64_t b = 0; b < weight.batch; ++b) {
      args.tiles = static_cast<const std::byte*>(tiles.const_data_ptr()) + sizeof(PackedHeader) +
                   b * weight.matrix_bytes;
      args.x = at(x_rows.tensor, b * x_rows.batch_stride);
      args.y = static_cast<std::byte*>(y.mutable_data_ptr()) + 2 * b * tokens * out;
      if (bias_rows) args.bias = at(*bias_rows, b * out);
      if (residual_rows) {
        args.residual = at(residual_rows->tensor, b * residual_rows->batch_stride);
      }
      const LinearSp24Kernel& row = choose(args, info);
      row.launch(row, args, info);
    }
    return y;
  });
}

Tensor linear_dx(const Tensor& grad, const Tensor& packed, std::int64_t layout, std::int64_t inputs,
                 const std::optional<Tensor>& dense) {
  return guarded([&] {
    check_device(grad, "grad", packed);
    check_layout(layout);
    if (dense) {
      refuse("a dense copy beside a packed weight is not used on a GPU; pass None");
    }
    const auto sizes = sizes_of(grad);
    if (sizes.empty()) refuse("grad has no dimensions; [..., out] is accepted");
    const Weight weight = describe_weight(grad, "grad", packed, sizes.back(), inputs);
    std::vector<std::int64_t> shape{weight.out, weight.in};
    if (weight.batch != 1) shape.insert(shape.begin(), weight.batch);
    const auto dtype = weight.dtype == DType::kFloat16 ? ScalarType::Half : ScalarType::BFloat16;
    return torch::stable::matmul(grad, unpack(packed, shape, dtype));
  });
}

std::string cuda_kernel(const Tensor& x, std::int64_t out) {
  return guarded([&] {
    const OnDevice device(x);
    const Rows rows = as_rows(x, false);
    const std::int64_t in = sizes_of(x).back();
    const Weight weight{dtype_of(x, "x"), 1, out, in, 0};
    LinearSp24Args args = args_of(weight, rows.tensor, in == 0 ? 0 : x.numel() / in);
    args.x_stride = rows.stride;
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
      const double seconds = why.empty() ? row.seconds(row, args, info) : 0.0;
      text +=
          fmt::format(R"({}{{"name": "{}", "dtype": "{}", "refuses": "{}", "seconds": {:.4e}}})",
                      text.size() > 1 ? ", " : "", row.name, dtype_name(row.dtype), why, seconds);
    }
    return text + "]";
  });
}

}  // namespace gossamer::door::cuda_ops
