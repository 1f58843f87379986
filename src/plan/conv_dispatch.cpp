// SPDX-License-Identifier: BSD-3-Clause
#include <vector>

#include "core/fail.h"
#include "gossamer/conv.h"
#include "plan/conv_plan.h"
#include "plan/kernel_table.h"
#include "plan/planned_layout.h"

namespace gossamer {
namespace {

using detail::fail;

/// What run_conv2d converts a weight to whose layout no row takes: every machine has a row for it.
Layout converted_layout(DType dtype) {
  return dtype == DType::kInt8 ? Layout::kBitmask : Layout::kKcsr128;
}

bool computes(const Conv2dKernel& row, Layout layout, DType dtype) {
  return row.layout == layout && row.dtype == dtype && host_machine().has(row.needs);
}

const Conv2dKernel* planned_row(const PackedView& weight, std::uint32_t hash) {
  if (hash == 0) return nullptr;
  const auto rows = conv2d_kernels();
  static const std::vector<std::uint32_t> hashes = [&] {
    std::vector<std::uint32_t> all;
    for (const Conv2dKernel& row : rows) all.push_back(kernel_hash(row.name));
    return all;
  }();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (hashes[i] == hash && computes(rows[i], weight.layout(), weight.dtype())) return &rows[i];
  }
  return nullptr;
}

const Conv2dKernel& sparse_row(const PackedView& weight, std::uint32_t planned) {
  static const Conv2dKernel* const forced = plan::environment_conv2d_row();
  if (forced != nullptr && computes(*forced, weight.layout(), weight.dtype())) return *forced;
  if (const Conv2dKernel* row = planned_row(weight, planned)) return *row;
  const Conv2dKernel* row = plan::widest_conv2d_row(weight.layout(), weight.dtype());
  if (row == nullptr)
    row = plan::widest_conv2d_row(converted_layout(weight.dtype()), weight.dtype());
  if (row != nullptr) return *row;
  fail(ErrorCode::kUnsupported,
       "no kernel computes a convolution with {} weights; float32 and int8 are accepted: convert "
       "the "
       "model "
       "with .to(torch.float32), or unpack the weight and compute dense",
       dtype_name(weight.dtype()));
}

std::uint32_t planned_hash(const PackedView& weight, std::int64_t pixels) {
  return weight.header().planned(token_bucket(pixels));
}

void check_pointers(const Conv2dArgs& args) {
  if (args.x == nullptr || args.y == nullptr) {
    fail(ErrorCode::kInvalidArgument, "run_conv2d: {} is null", args.x == nullptr ? "x" : "y");
  }
  const auto activation = static_cast<std::int32_t>(args.activation);
  if (activation < 0 || activation >= kActivationCount) {
    fail(ErrorCode::kInvalidArgument,
         "run_conv2d: activation is {}; accepted are 0 (none), 1 (relu), 2 (gelu), 3 (gelu by "
         "tanh), 4 (silu) and 5 (relu2)",
         activation);
  }
}

}  // namespace

namespace plan {

const Conv2dKernel* widest_conv2d_row(Layout layout, DType dtype) {
  const Conv2dKernel* best = nullptr;
  for (const Conv2dKernel& row : conv2d_kernels()) {
    if (!computes(row, layout, dtype)) continue;
    // Names are ascending: of equal vectors the row with more of them in a panel comes last.
    if (best == nullptr || row.lanes >= best->lanes) best = &row;
  }
  return best;
}

}  // namespace plan

Conv2dShape conv2d_shape(const PackedView& weight, const Conv2dLayer& layer, std::int64_t images,
                         std::int64_t height, std::int64_t width) {
  const PackedHeader& header = weight.header();
  Conv2dShape shape;
  shape.images = images;
  shape.in_channels = weight.in() / weight.taps();
  shape.out_channels = weight.out();
  shape.height = height;
  shape.width = width;
  shape.kernel_h = header.kernel_h;
  shape.kernel_w = header.kernel_w;
  shape.stride_h = layer.stride_h;
  shape.stride_w = layer.stride_w;
  shape.pad_top = layer.pad_top;
  shape.pad_bottom = layer.pad_bottom;
  shape.pad_left = layer.pad_left;
  shape.pad_right = layer.pad_right;
  shape.dilation_h = layer.dilation_h;
  shape.dilation_w = layer.dilation_w;
  return shape;
}

const Conv2dKernel* choose_conv2d_kernel(const PackedView& weight, std::int64_t pixels) {
  static const std::uint32_t dense = kernel_hash(kDenseKernel);
  static const std::string& forced = plan::environment_kernel();
  if (forced == kDenseKernel) return nullptr;
  const std::uint32_t planned = planned_hash(weight, pixels);
  if (planned == dense && plan::environment_conv2d_row() == nullptr) return nullptr;
  const Conv2dKernel& row = sparse_row(plan::planned_layout(weight, pixels), planned);
  return planned == dense && row.name != forced ? nullptr : &row;
}

void run_conv2d(const Conv2dArgs& args) {
  check_conv2d(args);
  const std::int64_t pixels = args.shape.images == 0 ? 0 : args.shape.pixels();
  if (pixels <= 0 || args.shape.out_channels == 0) return;
  check_pointers(args);
  const PackedView layout = plan::planned_layout(args.weight, pixels);
  const Conv2dKernel& row = sparse_row(layout, planned_hash(args.weight, pixels));
  if (row.layout == args.weight.layout()) return row.run(args);
  Conv2dArgs call = args;
  call.weight = layout;
  if (row.layout == layout.layout()) return row.run(call);
  const PackedWeight converted = convert(args.weight, row.layout);
  call.weight = converted.view();
  row.run(call);
}

}  // namespace gossamer
