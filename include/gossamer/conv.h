// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "gossamer/linear.h"

namespace gossamer {

/// The shape of a two-dimensional convolution (cross-correlation, as torch.nn.Conv2d computes it)
/// with one group. Padding is with zeros and may differ at the two ends, as padding="same" wants
/// it for even kernels.
struct Conv2dShape {
  std::int64_t images = 0;
  std::int64_t in_channels = 0;
  std::int64_t out_channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t kernel_h = 1;
  std::int64_t kernel_w = 1;
  std::int64_t stride_h = 1;
  std::int64_t stride_w = 1;
  std::int64_t pad_top = 0;
  std::int64_t pad_bottom = 0;
  std::int64_t pad_left = 0;
  std::int64_t pad_right = 0;
  std::int64_t dilation_h = 1;
  std::int64_t dilation_w = 1;

  /// 0 or less where the kernel is larger than the padded input.
  std::int64_t out_height() const {
    return (height + pad_top + pad_bottom - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
  }
  std::int64_t out_width() const {
    return (width + pad_left + pad_right - dilation_w * (kernel_w - 1) - 1) / stride_w + 1;
  }
  /// Output pixels of all images: what a linear layer calls tokens.
  std::int64_t pixels() const { return images * out_height() * out_width(); }
};

/// How the four dimensions of an activation lie in memory; strides count elements. Either `x` (the
/// column) or `c` (the channel) has stride 1: planar (NCHW) and channels-last (NHWC).
struct ImageStrides {
  std::int64_t image = 0;
  std::int64_t channel = 0;
  std::int64_t row = 0;
  std::int64_t column = 0;

  bool channels_last() const { return channel == 1 && column != 1; }
  static ImageStrides planar(std::int64_t channels, std::int64_t height, std::int64_t width) {
    return {channels * height * width, height * width, width, 1};
  }
  static ImageStrides nhwc(std::int64_t channels, std::int64_t height, std::int64_t width) {
    return {channels * height * width, 1, width * channels, channels};
  }
};

/// One call: Y = act(conv2d(X, W) + bias + residual). W is packed as the matrix
/// [OC, KH·KW·IC] (the taps of a filter in row order, the channels of a tap side by side). X, Y,
/// bias and residual have the activation dtype. Y's rows are contiguous within an image: planar
/// rows follow each other without gaps, channels-last pixels likewise. Y may not overlap the
/// inputs (residual excepted, where its strides are Y's).
struct Conv2dArgs {
  PackedView weight;
  Conv2dShape shape;
  const void* x = nullptr;
  ImageStrides x_strides{};
  void* y = nullptr;
  ImageStrides y_strides{};
  const void* bias = nullptr;      ///< [OC] or null
  const void* residual = nullptr;  ///< shape and strides of Y, or null
  Activation activation = Activation::kNone;
  ParallelFor parallel{};
};

/// One row of the convolutions' kernel table.
struct Conv2dKernel {
  std::string_view name;  ///< "avx2_conv2d_kcsr128_f32_nv8"
  std::uint32_t needs = kIsaGeneric;
  Layout layout = Layout::kKcsr128;
  DType dtype = DType::kFloat32;  ///< of weight and activations
  void (*run)(const Conv2dArgs& args) = nullptr;
};

/// All rows, ordered by name: the single source for dispatch, tests and benchmarks.
std::span<const Conv2dKernel> conv2d_kernels();

/// The row of that name, or null.
const Conv2dKernel* find_conv2d_kernel(std::string_view name);

/// Throws Error(kInvalidArgument) where the arguments contradict each other or no memory layout
/// that a kernel takes, naming what and the remedy. Every entry checks.
void check_conv2d(const Conv2dArgs& args);

/// Plain loops over the kept positions, sums in float64, rounded once: what every kernel is tested
/// against. Pruned weights are not read, so NaN and Inf in X pass them by. Serial.
void reference_conv2d(const Conv2dArgs& args);

}  // namespace gossamer
