// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/layouts.h"
#include "cpu/conv_panel.h"
#include "cpu/conv_task.h"
#include "cpu/spmm_driver.h"
#include "gossamer/conv.h"

// What convolutions share whatever layout and element type their weight has.
namespace gossamer::cpu {

/// Filters [first, first + count), whose sums for one panel are ready, to Y.
struct FinishedFilters {
  const Conv2dArgs& args;
  const ConvPanel& panel;
  const float* sums;
  std::int64_t lanes;
  std::int64_t first;
  std::int64_t count;

  std::int64_t bytes() const { return dtype_bytes(activation_dtype(args)); }
  const std::byte* at(const void* data, std::int64_t index) const {
    return data == nullptr ? nullptr : static_cast<const std::byte*>(data) + index * bytes();
  }
  std::byte* y(std::int64_t index) const {
    return static_cast<std::byte*>(args.y) + index * bytes();
  }

  /// Channels-last pixels follow each other through rows and images: one panel is one matrix.
  void store_channels_last(const KcsrFunctions& functions) const {
    const std::int64_t stride = args.y_strides.column;
    const std::int64_t offset = panel.first_pixel() * stride + first;
    KcsrStoreTask task{};
    task.sums = sums;
    task.lanes = lanes;
    task.out = {nullptr,
                0,
                panel.pixels(),
                count,
                at(args.bias, first),
                at(args.residual, offset),
                stride,
                y(offset),
                stride,
                args.activation};
    functions.store(task);
  }

  void store_planar(const ConvFunctions& steps) const {
    for (const ConvPanel::ImageRun& run : panel.image_runs()) {
      const std::int64_t offset =
          run.image * args.y_strides.image + first * args.y_strides.channel + run.pixel;
      steps.store({sums + run.lane, lanes, count, run.length, at(args.bias, first),
                   at(args.residual, offset), y(offset), args.y_strides.channel, args.activation});
    }
  }

  void store(const KcsrFunctions& functions, const ConvFunctions& steps) const {
    args.y_strides.channels_last() ? store_channels_last(functions) : store_planar(steps);
  }
};

/// A 1×1 convolution that takes every pixel sees each image as a single row.
inline Conv2dArgs flattened(Conv2dArgs args) {
  Conv2dShape& s = args.shape;
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 &&
                         s.pad_top == 0 && s.pad_bottom == 0 && s.pad_left == 0 && s.pad_right == 0;
  if (!pointwise || args.x_strides.row != s.width * args.x_strides.column) return args;
  s.width *= s.height;
  s.height = 1;
  return args;
}

/// Cycles by which calls are cut, of an element of X: a row of pixels is copied to a tile, channels
/// that lie side by side are transposed.
inline double copied_cycles(const Conv2dArgs& args) {
  return args.x_strides.channels_last() ? 1.0 : 0.25;
}

/// As many threads as a call is worth: `vectors` multiply-adds a kept value.
inline std::int64_t conv_threads(const Conv2dArgs& args, std::int64_t vectors) {
  const std::int64_t work = args.weight.kept() * vectors / kMinWorkPerThread;
  return std::clamp(work, std::int64_t{1}, std::int64_t{std::max(args.parallel.threads, 1)});
}

/// A grid of columns × filters for panels that are all equally wide, so that results do not depend
/// on the threads: `product` cycles of a panel that parts of the filters share, `copied` that each
/// of them repeats.
inline SpmmSplit cut_panels(std::int64_t panels, std::int64_t threads, double product,
                            double copied) {
  SpmmSplit best{1, threads, 0};
  double least = std::numeric_limits<double>::infinity();
  for (std::int64_t parts = 1; parts <= std::min(threads, panels); ++parts) {
    const std::int64_t filters = threads / parts;
    const double cycles = static_cast<double>(detail::ceil_div(panels, parts)) *
                          (product / static_cast<double>(filters) + copied);
    if (cycles >= least) continue;
    least = cycles;
    best = {parts, filters, 0};
  }
  return best;
}

/// The same for panels of `vectors` vectors of neighbouring pixels, by the costs of products whose
/// tiles are copied.
inline SpmmSplit cut_pixels(const Conv2dArgs& args, std::int64_t vector_lanes, int vectors,
                            const SplitCost& cost) {
  const std::int64_t lanes = vector_lanes * vectors;
  const std::int64_t panels = detail::ceil_div(args.shape.pixels(), lanes);
  const double product =
      static_cast<double>(args.weight.kept()) * (cost.per_value + cost.per_vector * vectors);
  const auto in = static_cast<double>(args.weight.in());
  return cut_panels(panels, conv_threads(args, panels * vectors), product,
                    in * static_cast<double>(lanes) * cost.per_element);
}

/// Calls run(part) for all filters and columns, threads side by side. A column is what one lane of
/// a panel holds, a panel is `lanes` of them. A source is the weight: it has
/// `balanced_row(part, parts)`.
template <typename Source, typename Run>
void run_conv_parts(const Conv2dArgs& args, const SpmmSplit& split, std::int64_t columns,
                    std::int64_t lanes, const Source& source, const Run& run) {
  if (columns <= 0 || args.weight.out() == 0) return;
  const std::int64_t panels = detail::ceil_div(columns, lanes);
  const std::int64_t column_parts = split.token_parts;
  const std::int64_t row_parts = split.row_parts;
  parallel_for(args.parallel, column_parts * row_parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t row = item / column_parts;
      const std::int64_t column = item % column_parts;
      run({source.balanced_row(row, row_parts), source.balanced_row(row + 1, row_parts),
           first_panel(panels, column_parts, column) * lanes,
           std::min(first_panel(panels, column_parts, column + 1) * lanes, columns)});
    }
  });
}

}  // namespace gossamer::cpu
