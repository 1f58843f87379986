// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <vector>

#include "core/activation.h"
#include "core/fail.h"
#include "core/half.h"
#include "core/requantize.h"
#include "core/row_source.h"
#include "gossamer/linear.h"

namespace gossamer {
namespace {

using detail::load_as;

/// Weights in a floating type that torch computes in keep it; the small ones meet float32
/// activations.
DType activation_dtype_of(DType weight) {
  return weight == DType::kFloat8E4M3 || weight == DType::kInt8 ? DType::kFloat32 : weight;
}

/// One row of the weight, ready to be multiplied.
struct WeightRow {
  std::vector<std::int32_t> cols;
  std::vector<double> values;
  std::int64_t count = 0;
};

/// One element of Y: act(Σ x·w + bias + residual), rounded once.
void compute(const LinearArgs& args, DType dtype, const WeightRow& weight, std::int64_t batch,
             std::int64_t token, std::int64_t row) {
  const DType x_dtype = args.x_scale != nullptr ? DType::kInt8 : dtype;
  const auto element = [&](const void* data, std::int64_t index) {
    return load_as<double>(dtype, static_cast<const std::byte*>(data), index);
  };
  const std::int64_t x = batch * args.x_batch_stride + token * args.x_stride;
  double sum = 0.0;
  for (std::int64_t i = 0; i < weight.count; ++i) {
    const auto k = static_cast<std::size_t>(i);
    sum += load_as<double>(x_dtype, static_cast<const std::byte*>(args.x), x + weight.cols[k]) *
           weight.values[k];
  }
  if (args.x_scale != nullptr) sum *= args.x_scale[batch * args.tokens + token];
  if (args.weight_scale != nullptr) sum *= args.weight_scale[batch * args.weight.out() + row];
  if (args.bias != nullptr) sum += element(args.bias, batch * args.weight.out() + row);
  if (args.residual != nullptr) {
    sum += element(args.residual,
                   batch * args.residual_batch_stride + token * args.residual_stride + row);
  }
  sum = detail::activate(args.activation, sum);
  const std::int64_t at = batch * args.y_batch_stride + token * args.y_stride + row;
  if (args.y_scale > 0.0f) {
    static_cast<std::int8_t*>(args.y)[at] = detail::requantized(sum, args.y_scale);
  } else {
    detail::store_as(dtype, static_cast<std::byte*>(args.y), at, sum);
  }
}

}  // namespace

LinearDesc describe(const PackedView& weight, const Epilogue& epilogue) {
  LinearDesc desc;
  desc.batch = weight.batch();
  desc.out = weight.out();
  desc.in = weight.in();
  desc.pattern = weight.pattern();
  const double positions = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                           static_cast<double>(desc.in);
  // Padding of the last group or block can take the stored values past the matrix.
  desc.density =
      positions > 0.0 ? std::min(1.0, static_cast<double>(weight.kept()) / positions) : 0.0;
  desc.weight_dtype = weight.dtype();
  desc.activation_dtype = epilogue.quantized ? DType::kInt8 : activation_dtype_of(weight.dtype());
  desc.epilogue = epilogue;
  return desc;
}

void reference_linear(const LinearArgs& args) {
  const PackedView& w = args.weight;
  const DType dtype = activation_dtype_of(w.dtype());
  const auto source = detail::packed_source(w);
  WeightRow row;
  row.cols.resize(static_cast<std::size_t>(w.in()));
  row.values.resize(static_cast<std::size_t>(w.in()));
  std::vector<std::byte> raw(static_cast<std::size_t>(w.in() * dtype_bytes(w.dtype())));
  for (std::int64_t b = 0; b < w.batch(); ++b) {
    for (std::int64_t r = 0; r < w.out(); ++r) {
      row.count = source->entries(b, r, row.cols.data(), raw.data());
      detail::load_row(w.dtype(), raw.data(), row.count, 1, row.values.data());
      for (std::int64_t t = 0; t < args.tokens; ++t) compute(args, dtype, row, b, t, r);
    }
  }
}

}  // namespace gossamer
