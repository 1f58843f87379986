// SPDX-License-Identifier: BSD-3-Clause
#include <vector>

#include "core/activation.h"
#include "core/half.h"
#include "core/row_source.h"
#include "gossamer/conv.h"

namespace gossamer {
namespace {

using detail::load_as;

/// The kept values of one filter.
struct Filter {
  std::vector<std::int32_t> taps;
  std::vector<double> values;
  std::int64_t count = 0;
};

std::int64_t offset(const ImageStrides& s, std::int64_t image, std::int64_t channel,
                    std::int64_t row, std::int64_t column) {
  return image * s.image + channel * s.channel + row * s.row + column * s.column;
}

/// The sum of one output pixel, in float64.
double sum_at(const Conv2dArgs& args, const Filter& filter, std::int64_t image, std::int64_t oy,
              std::int64_t ox) {
  const Conv2dShape& s = args.shape;
  const DType dtype = activation_dtype(args);
  double sum = 0.0;
  for (std::int64_t i = 0; i < filter.count; ++i) {
    const std::int64_t k = filter.taps[static_cast<std::size_t>(i)];
    const std::int64_t tap = k / s.in_channels;
    const std::int64_t y = oy * s.stride_h - s.pad_top + tap / s.kernel_w * s.dilation_h;
    const std::int64_t x = ox * s.stride_w - s.pad_left + tap % s.kernel_w * s.dilation_w;
    if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
    const std::int64_t at = offset(args.x_strides, image, k % s.in_channels, y, x);
    sum += load_as<double>(dtype, static_cast<const std::byte*>(args.x), at) *
           filter.values[static_cast<std::size_t>(i)];
  }
  return sum;
}

void compute_filter(const Conv2dArgs& args, const Filter& filter, std::int64_t channel) {
  const Conv2dShape& s = args.shape;
  const DType dtype = activation_dtype(args);
  const auto element = [&](const void* data, std::int64_t index) {
    return load_as<double>(dtype, static_cast<const std::byte*>(data), index);
  };
  for (std::int64_t image = 0; image < s.images; ++image) {
    for (std::int64_t oy = 0; oy < s.out_height(); ++oy) {
      for (std::int64_t ox = 0; ox < s.out_width(); ++ox) {
        const std::int64_t at = offset(args.y_strides, image, channel, oy, ox);
        double sum = sum_at(args, filter, image, oy, ox);
        if (args.bias != nullptr) sum += element(args.bias, channel);
        if (args.residual != nullptr) sum += element(args.residual, at);
        sum = detail::activate(args.activation, sum);
        detail::store_as(dtype, static_cast<std::byte*>(args.y), at, sum);
      }
    }
  }
}

}  // namespace

void reference_conv2d(const Conv2dArgs& args) {
  check_conv2d(args);
  const PackedView& w = args.weight;
  const auto source = detail::packed_source(w);
  Filter filter;
  filter.taps.resize(static_cast<std::size_t>(w.in()));
  filter.values.resize(static_cast<std::size_t>(w.in()));
  std::vector<std::byte> raw(static_cast<std::size_t>(w.in() * dtype_bytes(w.dtype())));
  for (std::int64_t row = 0; row < w.out(); ++row) {
    filter.count = source->entries(0, row, filter.taps.data(), raw.data());
    detail::load_row(w.dtype(), raw.data(), filter.count, 1, filter.values.data());
    if (args.weight_scale != nullptr) {
      for (double& value : filter.values) value *= args.weight_scale[row];
    }
    compute_filter(args, filter, row);
  }
}

}  // namespace gossamer
