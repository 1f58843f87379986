// SPDX-License-Identifier: BSD-3-Clause
// Threads, blocking and table rows of *_conv2d_kcsr*_f32: a convolution as K-blocked CSR over a
// tile of shifted views.
//
//   for each panel of output pixels, each block of filters (their sums stay in L2):
//     for each block of KC inputs (a few channels, all their taps): copy the pixels that those taps
//     see from X
//       into a tile (L1), add every kept value of the filters
//     store the sums to Y, with residual and activation
//
// X is read where it lies: a tile holds KC × panel floats, and no matrix of patches is ever made.
// Inputs and outputs are planar (NCHW) or channels-last; only the copy and the store differ.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/layouts.h"
#include "cpu/conv_panel.h"
#include "cpu/conv_rows.h"
#include "cpu/conv_task.h"
#include "cpu/kcsr_weight.h"
#include "cpu/scratch.h"
#include "gossamer/conv.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

/// Vector multiply-adds; below, waking a thread costs more.
constexpr std::int64_t kMinWorkPerThread = 16384;

/// One instruction set and one widest panel.
struct Variant {
  const KcsrFunctions& sums;
  const ConvFunctions& steps;
  int vectors;
};

void store_channels_last(const Variant& variant, const Conv2dArgs& args, const ConvPanel& panel,
                         KcsrStoreTask task, std::int64_t row) {
  // Channels-last pixels follow each other through rows and images: one panel is one matrix.
  const std::int64_t stride = args.y_strides.column;
  const std::int64_t offset = panel.first_pixel() * stride + row;
  task.y = static_cast<float*>(args.y) + offset;
  task.y_stride = stride;
  if (args.residual != nullptr) {
    task.residual = static_cast<const float*>(args.residual) + offset;
    task.residual_stride = stride;
  }
  variant.sums.store(task);
}

void store_planar(const Variant& variant, const Conv2dArgs& args, const ConvPanel& panel,
                  const KcsrStoreTask& sums, std::int64_t row) {
  for (const ConvPanel::ImageRun& run : panel.image_runs()) {
    const std::int64_t offset =
        run.image * args.y_strides.image + row * args.y_strides.channel + run.pixel;
    const auto* residual = static_cast<const float*>(args.residual);
    variant.steps.store({sums.sums + run.lane, sums.rows, sums.lanes, run.length,
                         static_cast<float*>(args.y) + offset, args.y_strides.channel,
                         residual == nullptr ? nullptr : residual + offset, args.y_strides.channel,
                         sums.relu});
  }
}

/// All inputs of filters [row_begin, row_end) for one panel of pixels.
void run_panel(const Variant& variant, const KcsrWeight& weight, const Conv2dArgs& args, int width,
               const ConvPanel& panel, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t lanes = variant.sums.vector_lanes * kPanelVectors[width];
  const std::int64_t tile_floats = weight.block * lanes;
  float* tile = scratch(tile_floats + kSumsFloats);
  float* sums = tile + tile_floats;
  const std::int64_t rows_at_once = kSumsFloats / lanes;
  const auto* bias = static_cast<const float*>(args.bias);
  const bool last_channels = args.y_strides.channels_last();
  for (std::int64_t row = row_begin; row < row_end; row += rows_at_once) {
    const std::int64_t last = std::min(row + rows_at_once, row_end);
    for (std::int64_t k = 0; k < weight.block_count; ++k) {
      const std::int64_t begin = k * weight.block;
      panel.fill(variant.steps, begin, std::min(begin + weight.block, weight.in), tile);
      variant.sums.add[width]({weight.values + weight.blocks[k], weight.cols + weight.blocks[k],
                               weight.segments + k * (weight.out + 1), row, last, tile, sums,
                               k == 0, bias});
    }
    const KcsrStoreTask task{sums,           last - row, lanes,
                             panel.pixels(), nullptr,    0,
                             nullptr,        0,          args.activation == Activation::kRelu};
    last_channels ? store_channels_last(variant, args, panel, task, row)
                  : store_planar(variant, args, panel, task, row);
  }
}

void run_part(const Variant& variant, const KcsrWeight& weight, const Conv2dArgs& args,
              std::int64_t row_begin, std::int64_t row_end, std::int64_t begin, std::int64_t end) {
  if (row_begin >= row_end) return;
  ConvPanel panel(args);
  for (std::int64_t pixel = begin; pixel < end;) {
    const int width = panel_width(end - pixel, variant.sums.vector_lanes, variant.vectors);
    const std::int64_t lanes = variant.sums.vector_lanes * kPanelVectors[width];
    const std::int64_t count = std::min(end - pixel, lanes);
    panel.move_to(pixel, count, lanes);
    run_panel(variant, weight, args, width, panel, row_begin, row_end);
    pixel += count;
  }
}

/// A 1×1 convolution that takes every pixel sees each image as a single row.
Conv2dArgs flattened(Conv2dArgs args) {
  Conv2dShape& s = args.shape;
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 &&
                         s.pad_top == 0 && s.pad_bottom == 0 && s.pad_left == 0 && s.pad_right == 0;
  if (!pointwise || args.x_strides.row != s.width * args.x_strides.column) return args;
  s.width *= s.height;
  s.height = 1;
  return args;
}

void run(const Variant& variant, const Conv2dArgs& given) {
  const Conv2dArgs args = flattened(given);
  const std::int64_t pixels = args.shape.pixels();
  if (pixels <= 0 || args.weight.out() == 0) return;
  const std::int64_t lanes = variant.sums.vector_lanes * variant.vectors;
  const std::int64_t panels = ceil_div(pixels, lanes);
  const std::int64_t work = args.weight.kept() * ceil_div(pixels, variant.sums.vector_lanes);
  const std::int64_t threads = std::clamp(work / kMinWorkPerThread, std::int64_t{1},
                                          std::int64_t{std::max(args.parallel.threads, 1)});
  // Pixels first, because a tile is then filled once; filters where panels do not suffice.
  const std::int64_t pixel_parts = std::min(threads, panels);
  const std::int64_t row_parts = ceil_div(threads, pixel_parts);
  ParallelFor parallel = args.parallel;
  if (threads == 1) parallel.run = nullptr;
  const KcsrWeight weight(args.weight, 0);
  parallel_for(parallel, pixel_parts * row_parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t row = item / pixel_parts;
      const std::int64_t column = item % pixel_parts;
      run_part(variant, weight, args, weight.balanced_row(row, row_parts),
               weight.balanced_row(row + 1, row_parts), panels * column / pixel_parts * lanes,
               std::min(panels * (column + 1) / pixel_parts * lanes, pixels));
    }
  });
}

template <const KcsrFunctions& sums, const ConvFunctions& steps, Layout layout, int vectors>
Conv2dKernel row(std::string_view name, std::uint32_t needs) {
  Conv2dKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = layout;
  kernel.run = [](const Conv2dArgs& args) { run({sums, steps, vectors}, args); };
  return kernel;
}

template <Layout layout, int vectors>
Conv2dKernel generic(std::string_view name) {
  return row<generic_spmm_kcsr_f32, generic_conv2d_f32, layout, vectors>(name, kIsaGeneric);
}

#if defined(__x86_64__)
template <Layout layout, int vectors>
Conv2dKernel avx2(std::string_view name) {
  return row<avx2_spmm_kcsr_f32, avx2_conv2d_f32, layout, vectors>(name, kIsaAvx2);
}

template <Layout layout, int vectors>
Conv2dKernel avx512(std::string_view name) {
  return row<avx512_spmm_kcsr_f32, avx512_conv2d_f32, layout, vectors>(name, kIsaAvx512);
}
#endif

}  // namespace

std::vector<Conv2dKernel> conv2d_kcsr_rows() {
  using enum Layout;
  return {
      generic<kKcsr64, 8>("generic_conv2d_kcsr64_f32"),
      generic<kKcsr128, 8>("generic_conv2d_kcsr128_f32"),
      generic<kKcsr256, 8>("generic_conv2d_kcsr256_f32"),
#if defined(__x86_64__)
      avx2<kKcsr128, 8>("avx2_conv2d_kcsr128_f32_nv8"),
      avx2<kKcsr256, 8>("avx2_conv2d_kcsr256_f32_nv8"),
      avx2<kKcsr256, 4>("avx2_conv2d_kcsr256_f32_nv4"),
      avx512<kKcsr64, 8>("avx512_conv2d_kcsr64_f32_nv8"),
      avx512<kKcsr128, 8>("avx512_conv2d_kcsr128_f32_nv8"),
      avx512<kKcsr128, 4>("avx512_conv2d_kcsr128_f32_nv4"),
      avx512<kKcsr256, 4>("avx512_conv2d_kcsr256_f32_nv4"),
#endif
  };
}

}  // namespace gossamer::cpu
