// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <functional>
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
/// bias and residual have the activation dtype: W's, and of an int8 weight float32. Y's rows are
/// contiguous within an image: planar rows follow each other without gaps, channels-last pixels
/// likewise. Y may not overlap the inputs (residual excepted, where its strides are Y's).
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

  // Quantized calls: the weight is int8 of at most 65536 inputs, filter r is weight_scale[r] times
  // its values. A pixel x of image i is rounded to p = x / x_scale[i], at most 127 either way, and
  // enters the products as x_scale[i]·p; image_scales() gives scales that no pixel exceeds. Where
  // x_scale[i] is NaN all of the image's results are.
  const float* weight_scale = nullptr;  ///< [OC], or null: not quantized
  const float* x_scale = nullptr;       ///< [images]
};

/// float32 where the weight is int8, otherwise its dtype.
DType activation_dtype(const Conv2dArgs& args);

/// scale[i] = max |x| / 127 over image i of a quantized call's X, 0 where nothing is larger than
/// 4e-37, NaN where something is not finite. Reads shape, x, x_strides and parallel.
void image_scales(const Conv2dArgs& args, float* scale);

/// One row of the convolutions' kernel table.
struct Conv2dKernel {
  std::string_view name;  ///< "avx2_conv2d_kcsr128_f32_nv8"
  std::uint32_t needs = kIsaGeneric;
  Layout layout = Layout::kKcsr128;
  DType dtype = DType::kFloat32;  ///< of the weight; activations: activation_dtype()
  int lanes = 1;                  ///< pixels that one vector holds
  void (*run)(const Conv2dArgs& args) = nullptr;
};

/// All rows, ordered by name: the single source for dispatch, tests and benchmarks.
std::span<const Conv2dKernel> conv2d_kernels();

/// The row of that name, or null.
const Conv2dKernel* find_conv2d_kernel(std::string_view name);

/// The row that run_conv2d will call for so many output pixels: the header's choice of the bucket
/// that token_bucket(pixels) names where this machine can run it, otherwise the widest row of the
/// layout. For a layout that no row takes, a row of the layout that run_conv2d converts it to.
/// Null where the plan says "dense". Throws Error(kUnsupported) where no row computes the dtype.
const Conv2dKernel* choose_conv2d_kernel(const PackedView& weight, std::int64_t pixels);

/// Y = act(conv2d(X, W) + bias + residual) by the chosen row (dense choices included: by the best
/// sparse row, since only a door can run dense). A weight in a layout that no row takes is
/// converted for this one call. Throws as check_conv2d and choose_conv2d_kernel do.
void run_conv2d(const Conv2dArgs& args);

/// What the dense peer of a convolution needs to be timed: a call that computes the dense Y of a
/// shape, warm, in the memory format that is planned for. `name` as in DensePeer.
struct Conv2dDensePeer {
  std::function<void(const Conv2dShape& shape)> run;
  std::string name = {};
};

/// What a convolution's plan is made for beside its weight: kernel size and channels are the
/// weight's, the sizes of the maps are nominal.
struct Conv2dLayer {
  std::int64_t stride_h = 1;
  std::int64_t stride_w = 1;
  std::int64_t pad_top = 0;
  std::int64_t pad_bottom = 0;
  std::int64_t pad_left = 0;
  std::int64_t pad_right = 0;
  std::int64_t dilation_h = 1;
  std::int64_t dilation_w = 1;
  bool channels_last = false;
};

/// The shape of one call on `images` maps of `height` × `width` pixels: channels and kernel size
/// are the weight's, which must be a convolution's.
Conv2dShape conv2d_shape(const PackedView& weight, const Conv2dLayer& layer, std::int64_t images,
                         std::int64_t height, std::int64_t width);

/// Chooses layout and kernels for a convolution's weight given in any layout; buckets count output
/// pixels of all images. Times rows beside dense on square maps of 2 to 56 pixels a side, one image
/// and sixteen, as far as the budget goes; the thresholds are those of plan_linear, but where the
/// kernel has several taps, results of up to four pixels in all do not decide whether the layer is
/// packed. A single pixel takes the choice of the smallest map and is not compared with dense.
/// PlanMode::kModel estimates both from operation counts. The weight must be a convolution's
/// (PackOptions::kernel_h), else Error(kInvalidArgument).
Plan plan_conv2d(const PackedView& weight, const Conv2dLayer& layer, const Epilogue& epilogue,
                 const Machine& machine, const Conv2dDensePeer& dense, const PlanOptions& options);

/// Throws Error(kInvalidArgument) where the arguments contradict each other or no memory layout
/// that a kernel takes, naming what and the remedy; likewise where an int8 weight has no scales or
/// too many inputs, and where another one has scales. Every entry checks.
void check_conv2d(const Conv2dArgs& args);

/// Plain loops over the kept positions, sums in float64, rounded once: what every kernel is tested
/// against. Pruned weights are not read, so NaN and Inf in X pass them by. Of a quantized call X
/// is not rounded: a row's result differs by at most x_scale / 2 times the sum of |w|. Serial.
void reference_conv2d(const Conv2dArgs& args);

}  // namespace gossamer
