// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "gossamer/conv.h"
#include "gossamer/linear.h"
#include "torch/bridge.h"
#include "torch/dense.h"

/// The operators of torch.ops.gossamer; their schemas are in registration.cpp, their shapes in
/// python/gossamer/_ops_shapes.py.
namespace gossamer::door {

// ops_linear.cpp
Tensor linear(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
              std::int64_t activation, const std::optional<Tensor>& residual,
              const std::optional<Tensor>& dense);
/// linear without scale, activation, residual and dense copy.
Tensor linear_plain(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                    const std::optional<Tensor>& bias);
/// grad·W, the gradient of x: [..., out] -> [..., in]. Unpacks the weight where no dense copy is
/// given.
Tensor linear_dx(const Tensor& grad, const Tensor& packed, std::int64_t layout, std::int64_t inputs,
                 const std::optional<Tensor>& dense);
/// Refuses an x and a record of the weight that do not belong to it.
void check_linear_call(const Tensor& x, const PackedView& weight, std::int64_t layout,
                       std::int64_t out);
/// Refuse operands of another shape than the packed weight and the result demand.
void check_linear_bias(const Tensor& bias, const PackedView& weight);
void check_linear_residual(const Tensor& residual, std::span<const std::int64_t> y_shape);
/// Refuses a dense copy whose shape is not the packed weight's.
void check_dense(const Tensor& dense, const PackedView& weight);

// ops_quantized.cpp
/// How a quantized layer's x and result relate to int8; 0 where a scale is not given.
struct Int8Scales {
  float x =
      0.0f;  ///< of an int8 x, and what a floating one is rounded to; 0: a token (image) its own
  float y = 0.0f;  ///< of an int8 result; 0: it is floating
};
/// Refuses scales that are no numbers of that kind.
Int8Scales checked_scales(double x_scale, double y_scale);

/// act(x·Wᵀ + bias + residual) with an int8 weight and its scales [out]. x, bias, residual and the
/// result have the floating dtype `dtype`, x and the result int8 where the scales say so; sums and
/// epilogue are float32.
Tensor linear_quantized(const Tensor& x, const PackedView& weight, const Tensor& scale,
                        const Int8Scales& scales, DType dtype, const std::optional<Tensor>& bias,
                        Activation activation, const std::optional<Tensor>& residual,
                        const std::optional<Tensor>& dense);
Tensor linear_int8(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                   const Tensor& scale, double x_scale, double y_scale, ScalarType dtype,
                   const std::optional<Tensor>& bias, std::int64_t activation,
                   const std::optional<Tensor>& residual, const std::optional<Tensor>& dense);

/// Refuses scales that are not those of the packed weight, which must be int8.
void check_scale(const Tensor& scale, const PackedView& weight);

// ops_conv.cpp
/// The numbers of a convolution beside its weight, as the operators take them.
struct ConvNumbers {
  const std::vector<std::int64_t>& stride;
  const std::vector<std::int64_t>& padding;  ///< [h, w] or [top, bottom, left, right]
  const std::vector<std::int64_t>& dilation;
};
/// As the core has them; refuses lists of other lengths and values that are out of range.
Conv2dLayer checked_layer(const ConvNumbers& numbers);
Tensor conv2d(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::vector<std::int64_t>& kernel, const std::vector<std::int64_t>& stride,
              const std::vector<std::int64_t>& padding, const std::vector<std::int64_t>& dilation,
              const std::optional<Tensor>& bias, std::int64_t activation,
              const std::optional<Tensor>& residual, const std::optional<Tensor>& dense,
              const std::optional<Tensor>& scale);
Tensor conv2d_int8(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                   const std::vector<std::int64_t>& kernel, const std::vector<std::int64_t>& stride,
                   const std::vector<std::int64_t>& padding,
                   const std::vector<std::int64_t>& dilation, const Tensor& scale, double x_scale,
                   double y_scale, const std::optional<Tensor>& bias, std::int64_t activation,
                   const std::optional<Tensor>& residual, const std::optional<Tensor>& dense);
/// act(conv2d(x, dense) + bias + residual) by aten::conv2d, x of four dimensions.
Tensor dense_conv2d(const Tensor& x, const Tensor& dense, const std::optional<Tensor>& bias,
                    const Conv2dLayer& layer, Activation activation,
                    const std::optional<Tensor>& residual);
/// Refuses a dense copy whose shape is not the packed convolution's.
void check_dense_conv2d(const Tensor& dense, const PackedView& weight);
/// A new CPU tensor, not initialised, in torch's strides for the memory format.
Tensor empty_images(const std::array<std::int64_t, 4>& sizes, bool channels_last, DType dtype);

// ops_pack.cpp
Tensor pack(const Tensor& values, const std::optional<Tensor>& mask, const std::string& pattern,
            const std::string& layout, bool transposed, const std::string& name);
/// Packs other values of the same shape, with another mask, into the memory of a packed weight:
/// same layout and plan, as many bytes. Where it throws the weight is as it was.
void pack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask);
/// Unpacks into the memory of a dense weight and a mask.
void unpack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask);
Tensor unpack(const Tensor& packed, const std::vector<std::int64_t>& shape, ScalarType dtype);
Tensor unpack_mask(const Tensor& packed, const std::vector<std::int64_t>& shape);
std::string info(const Tensor& packed);
std::vector<Tensor> format_arrays(const Tensor& packed);
Tensor from_format_arrays(const std::string& info, const std::vector<Tensor>& arrays);

// ops_layout.cpp
/// What one name of a layout stands for: "bitmask", "rowpairs64+bitmask".
struct Layouts {
  Layout first = Layout::kBitmask;
  std::optional<Layout> second;
};
Layouts layouts_from_name(const std::string& name, const Pattern& pattern);
std::string layouts_name(const PackedView& weight);
Tensor convert(const Tensor& packed, const std::string& layout);
/// Makes the second layout that a plan of a large weight left out.
void fill_second_(const Tensor& packed, const std::string& layout);
Tensor slice_rows(const Tensor& packed, std::int64_t begin, std::int64_t end);
Tensor concat_rows(const std::vector<Tensor>& parts);
void validate(const Tensor& packed);

// ops_plan.cpp; the weight is [0] where the plan is dense
std::tuple<Tensor, std::string> plan(const Tensor& packed, const Tensor& dense, bool bias,
                                     std::int64_t activation, const std::string& mode,
                                     const std::string& memory, const std::string& kernel,
                                     const std::string& cache);
std::tuple<Tensor, std::string> plan_conv2d(const Tensor& packed, const Tensor& dense,
                                            const std::vector<std::int64_t>& stride,
                                            const std::vector<std::int64_t>& padding,
                                            const std::vector<std::int64_t>& dilation,
                                            bool channels_last, bool bias, std::int64_t activation,
                                            const std::string& mode, const std::string& memory,
                                            const std::string& kernel, const std::string& cache);
Tensor with_plan(const Tensor& packed, const std::string& kernels);
std::string machine_info();
std::string kernel_table();

// ops_mask.cpp
std::vector<Tensor> select_masks(const std::vector<Tensor>& scores, const std::string& pattern,
                                 const std::string& scope);
Tensor magnitude_mask(const Tensor& values, const std::string& pattern, const std::string& scope);
std::string find_violation(const Tensor& values, const std::string& pattern);
std::string infer_pattern(const Tensor& values);
std::int64_t count_nonzeros(const Tensor& values);
std::string parse_pattern(const std::string& text);

// ops_prune.cpp
/// gram += xᵀ·y, in place.
void gram_(const Tensor& gram, const Tensor& x, const Tensor& y);
/// Corrected weight and mask; `pattern` is empty where a mask is given.
std::tuple<Tensor, Tensor> obs_sweep(const Tensor& weight, const Tensor& factor,
                                     const std::optional<Tensor>& mask, const std::string& pattern,
                                     std::int64_t block, std::int64_t segment);
/// Weight, iterations made, worst relative residual.
std::tuple<Tensor, std::int64_t, double> refit(const Tensor& weight, const Tensor& gram,
                                               const Tensor& target, const Tensor& mask,
                                               std::int64_t iterations, double tolerance);
/// Weight, mask, iterations made, last penalty, whether the support settled.
std::tuple<Tensor, Tensor, std::int64_t, double, bool> admm(
    const Tensor& weight, const Tensor& eigenvectors, const Tensor& eigenvalues,
    const std::string& pattern, const std::string& scope, std::int64_t iterations, double penalty,
    std::int64_t segment);
/// Mask and number of swaps.
std::tuple<Tensor, std::int64_t> swap_refine(const Tensor& weight, const Tensor& gram,
                                             const Tensor& mask, std::int64_t group,
                                             std::int64_t segment, std::int64_t max_swaps);
Tensor lamp_scores(const Tensor& weight);
Tensor transposable_mask(const Tensor& scores, std::int64_t n, std::int64_t m);

}  // namespace gossamer::door
