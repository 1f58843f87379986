// SPDX-License-Identifier: BSD-3-Clause
// The schemas of torch.ops.gossamer. linear takes tensors and ints only: lists and strings would
// cost microseconds a call. linear_autograd is the same function under a name that has a gradient,
// because an autograd formula costs every call, with or without gradients; linear_plain is it with
// the arguments of F.linear alone, because each argument costs every call, None too.
#include <torch/csrc/stable/library.h>

#include "torch/ops.h"

STABLE_TORCH_LIBRARY(gossamer, m) {
  m.def(
      "linear(Tensor x, Tensor packed, int layout, int out, Tensor? scale=None, Tensor? bias=None, "
      "int activation=0, Tensor? residual=None, Tensor? dense=None) -> Tensor");
  m.def("linear_plain(Tensor x, Tensor packed, int layout, int out, Tensor? bias) -> Tensor");
  m.def(
      "linear_autograd(Tensor x, Tensor packed, int layout, int out, Tensor? scale=None, "
      "Tensor? bias=None, int activation=0, Tensor? residual=None, Tensor? dense=None) -> Tensor");
  m.def(
      "linear_dx(Tensor grad, Tensor packed, int layout, int inputs, Tensor? dense=None) -> "
      "Tensor");
  m.def(
      "conv2d(Tensor x, Tensor packed, int layout, int out, int[] kernel, int[] stride, int[] "
      "padding, int[] dilation, Tensor? bias=None, int activation=0, Tensor? residual=None, "
      "Tensor? dense=None, Tensor? scale=None) -> Tensor");
  m.def(
      "conv2d_autograd(Tensor x, Tensor packed, int layout, int out, int[] kernel, int[] stride, "
      "int[] "
      "padding, int[] dilation, Tensor? bias=None, int activation=0, Tensor? residual=None, "
      "Tensor? dense=None, Tensor? scale=None) -> Tensor");
  // Quantized layers whose inputs have one scale that was calibrated, or are int8 already, and
  // whose result may be the next one's int8; their own operators, so that others pay nothing.
  m.def(
      "linear_int8(Tensor x, Tensor packed, int layout, int out, Tensor scale, float x_scale, "
      "float "
      "y_scale, ScalarType dtype, Tensor? bias=None, int activation=0, Tensor? residual=None, "
      "Tensor? dense=None) -> Tensor");
  m.def(
      "linear_int8_autograd(Tensor x, Tensor packed, int layout, int out, Tensor scale, float "
      "x_scale, float y_scale, ScalarType dtype, Tensor? bias=None, int activation=0, Tensor? "
      "residual=None, Tensor? dense=None) -> Tensor");
  m.def(
      "conv2d_int8(Tensor x, Tensor packed, int layout, int out, int[] kernel, int[] stride, int[] "
      "padding, int[] dilation, Tensor scale, float x_scale, float y_scale, Tensor? bias=None, int "
      "activation=0, Tensor? residual=None, Tensor? dense=None) -> Tensor");
  m.def(
      "conv2d_int8_autograd(Tensor x, Tensor packed, int layout, int out, int[] kernel, int[] "
      "stride, int[] padding, int[] dilation, Tensor scale, float x_scale, float y_scale, Tensor? "
      "bias=None, int activation=0, Tensor? residual=None, Tensor? dense=None) -> Tensor");
  m.def(
      "pack(Tensor values, Tensor? mask, str pattern, str layout, bool transposed, str name) -> "
      "Tensor");
  m.def("pack_(Tensor(a!) packed, Tensor values, Tensor? mask=None) -> ()");
  m.def("unpack_(Tensor packed, Tensor(a!) values, Tensor(b!)? mask=None) -> ()");
  m.def("unpack(Tensor packed, int[] shape, ScalarType dtype) -> Tensor");
  m.def("unpack_mask(Tensor packed, int[] shape) -> Tensor");
  m.def("convert(Tensor packed, str layout) -> Tensor");
  m.def("fill_second_(Tensor(a!) packed, str layout) -> ()");
  m.def("slice_rows(Tensor packed, int begin, int end) -> Tensor");
  m.def("concat_rows(Tensor[] parts) -> Tensor");
  m.def("validate(Tensor packed) -> ()");
  m.def("info(Tensor packed) -> str");
  m.def("format_arrays(Tensor packed) -> Tensor[]");
  m.def("from_format_arrays(str info, Tensor[] arrays) -> Tensor");
  m.def(
      "plan(Tensor packed, Tensor dense, bool bias, int activation, str mode, str memory, str "
      "kernel, "
      "str cache) -> (Tensor, str)");
  m.def(
      "plan_conv2d(Tensor packed, Tensor dense, int[] stride, int[] padding, int[] dilation, bool "
      "channels_last, bool bias, int activation, str mode, str memory, str kernel, str cache) -> "
      "(Tensor, str)");
  m.def("with_plan(Tensor packed, str kernels) -> Tensor");
  m.def("select_masks(Tensor[] scores, str pattern, str scope) -> Tensor[]");
  m.def("magnitude_mask(Tensor values, str pattern, str scope) -> Tensor");
  m.def("find_violation(Tensor values, str pattern) -> str");
  m.def("infer_pattern(Tensor values) -> str");
  m.def("count_nonzeros(Tensor values) -> int");
  m.def("parse_pattern(str text) -> str");
  m.def("gram_(Tensor(a!) gram, Tensor x, Tensor y) -> ()");
  m.def(
      "obs_sweep(Tensor weight, Tensor factor, Tensor? mask, str pattern, int block, int segment) "
      "-> (Tensor, Tensor)");
  m.def(
      "refit(Tensor weight, Tensor gram, Tensor target, Tensor mask, int iterations, float "
      "tolerance) -> (Tensor, int, float)");
  m.def(
      "admm(Tensor weight, Tensor eigenvectors, Tensor eigenvalues, str pattern, str scope, int "
      "iterations, float penalty, int segment) -> (Tensor, Tensor, int, float, bool)");
  m.def(
      "swap_refine(Tensor weight, Tensor gram, Tensor mask, int group, int segment, int max_swaps) "
      "-> (Tensor, int)");
  m.def("lamp_scores(Tensor weight) -> Tensor");
  m.def("transposable_mask(Tensor scores, int n=2, int m=4) -> Tensor");
  m.def("machine_info() -> str");
  m.def("kernel_table() -> str");
}

namespace gossamer::door {

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_plain", TORCH_BOX(&linear_plain));
  m.impl("linear_autograd", TORCH_BOX(&linear));
  m.impl("linear_dx", TORCH_BOX(&linear_dx));
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_autograd", TORCH_BOX(&conv2d));
  m.impl("linear_int8", TORCH_BOX(&linear_int8));
  m.impl("linear_int8_autograd", TORCH_BOX(&linear_int8));
  m.impl("conv2d_int8", TORCH_BOX(&conv2d_int8));
  m.impl("conv2d_int8_autograd", TORCH_BOX(&conv2d_int8));
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("pack_", TORCH_BOX(&pack_));
  m.impl("unpack_", TORCH_BOX(&unpack_));
  m.impl("unpack", TORCH_BOX(&unpack));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
  m.impl("convert", TORCH_BOX(&convert));
  m.impl("fill_second_", TORCH_BOX(&fill_second_));
  m.impl("slice_rows", TORCH_BOX(&slice_rows));
  m.impl("concat_rows", TORCH_BOX(&concat_rows));
  m.impl("validate", TORCH_BOX(&validate));
  m.impl("info", TORCH_BOX(&info));
  m.impl("format_arrays", TORCH_BOX(&format_arrays));
  m.impl("from_format_arrays", TORCH_BOX(&from_format_arrays));
  m.impl("plan", TORCH_BOX(&plan));
  m.impl("plan_conv2d", TORCH_BOX(&plan_conv2d));
  m.impl("with_plan", TORCH_BOX(&with_plan));
  m.impl("select_masks", TORCH_BOX(&select_masks));
  m.impl("magnitude_mask", TORCH_BOX(&magnitude_mask));
  m.impl("find_violation", TORCH_BOX(&find_violation));
  m.impl("infer_pattern", TORCH_BOX(&infer_pattern));
  m.impl("count_nonzeros", TORCH_BOX(&count_nonzeros));
  m.impl("gram_", TORCH_BOX(&gram_));
  m.impl("obs_sweep", TORCH_BOX(&obs_sweep));
  m.impl("refit", TORCH_BOX(&refit));
  m.impl("admm", TORCH_BOX(&admm));
  m.impl("swap_refine", TORCH_BOX(&swap_refine));
  m.impl("lamp_scores", TORCH_BOX(&lamp_scores));
  m.impl("transposable_mask", TORCH_BOX(&transposable_mask));
}

STABLE_TORCH_LIBRARY_IMPL(gossamer, CompositeExplicitAutograd, m) {
  m.impl("parse_pattern", TORCH_BOX(&parse_pattern));
  m.impl("machine_info", TORCH_BOX(&machine_info));
  m.impl("kernel_table", TORCH_BOX(&kernel_table));
}

}  // namespace gossamer::door
