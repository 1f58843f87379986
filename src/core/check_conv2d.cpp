// SPDX-License-Identifier: BSD-3-Clause
#include "core/fail.h"
#include "gossamer/conv.h"

namespace gossamer {
namespace {

using detail::fail;

constexpr auto kInvalid = ErrorCode::kInvalidArgument;

void check_numbers(const Conv2dShape& s) {
  if (s.images < 0 || s.in_channels < 1 || s.out_channels < 0 || s.height < 0 || s.width < 0) {
    fail(
        kInvalid,
        "conv2d of {} images, {} channels in, {} out, {}×{} pixels: counts may not be negative and "
        "there is at least one channel in",
        s.images, s.in_channels, s.out_channels, s.height, s.width);
  }
  if (s.kernel_h < 1 || s.kernel_w < 1 || s.stride_h < 1 || s.stride_w < 1 || s.dilation_h < 1 ||
      s.dilation_w < 1) {
    fail(kInvalid, "conv2d with kernel {}×{}, stride {}×{}, dilation {}×{}: each is at least 1",
         s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w);
  }
  if (s.pad_top < 0 || s.pad_bottom < 0 || s.pad_left < 0 || s.pad_right < 0) {
    fail(kInvalid,
         "conv2d with padding {}, {}, {}, {} (top, bottom, left, right): none is negative",
         s.pad_top, s.pad_bottom, s.pad_left, s.pad_right);
  }
  if (s.images > 0 && (s.out_height() < 1 || s.out_width() < 1)) {
    fail(kInvalid, "conv2d: kernel {}×{} is larger than the padded input {}×{}", s.kernel_h,
         s.kernel_w, s.height + s.pad_top + s.pad_bottom, s.width + s.pad_left + s.pad_right);
  }
}

void check_scales(const Conv2dArgs& args) {
  constexpr std::int64_t kMaxInputs = 65536;  // more products may not fit 32 bits
  const bool has_images = args.shape.images > 0;
  const bool has_scales = args.weight_scale != nullptr && (args.x_scale != nullptr || !has_images);
  const bool has_none = args.weight_scale == nullptr && args.x_scale == nullptr;
  if (args.weight.dtype() != DType::kInt8) {
    if (has_none) return;
    fail(kInvalid, "conv2d: scales are given and the weight is {}; they belong to int8 weights",
         dtype_name(args.weight.dtype()));
  }
  if (!has_scales) {
    fail(kInvalid,
         "conv2d: the weight is int8 and {} is null; give the scales of all filters and of all "
         "images (image_scales)",
         args.weight_scale == nullptr ? "weight_scale" : "x_scale");
  }
  if (args.weight.in() > kMaxInputs) {
    fail(kInvalid, "conv2d: the int8 weight has {} inputs, at most {} are computed; leave it float",
         args.weight.in(), kMaxInputs);
  }
}

}  // namespace

DType activation_dtype(const Conv2dArgs& args) {
  const DType dtype = args.weight.dtype();
  return dtype == DType::kInt8 ? DType::kFloat32 : dtype;
}

void check_conv2d(const Conv2dArgs& args) {
  const Conv2dShape& s = args.shape;
  check_numbers(s);
  const std::int64_t in = s.kernel_h * s.kernel_w * s.in_channels;
  if (args.weight.batch() != 1 || args.weight.out() != s.out_channels || args.weight.in() != in) {
    fail(kInvalid,
         "conv2d: the packed weight is {} × {} in {} batches, a convolution of {} filters over "
         "{}×{} taps of {} channels needs {} × {} in one",
         args.weight.out(), args.weight.in(), args.weight.batch(), s.out_channels, s.kernel_h,
         s.kernel_w, s.in_channels, s.out_channels, in);
  }
  check_scales(args);
  const ImageStrides& x = args.x_strides;
  if (x.column != 1 && x.channel != 1) {
    fail(
        kInvalid,
        "conv2d: X has strides {}, {}, {}, {} (image, channel, row, column); either the columns or "
        "the channels must lie side by side: make it contiguous first",
        x.image, x.channel, x.row, x.column);
  }
  const ImageStrides& y = args.y_strides;
  const bool planar = y.column == 1 && y.row == s.out_width();
  const bool last =
      y.channel == 1 && y.row == s.out_width() * y.column && y.image == s.out_height() * y.row;
  if (!planar && !last) {
    fail(kInvalid,
         "conv2d: Y has strides {}, {}, {}, {} (image, channel, row, column); its pixels must "
         "follow each other without gaps, planar or channels-last",
         y.image, y.channel, y.row, y.column);
  }
}

}  // namespace gossamer
