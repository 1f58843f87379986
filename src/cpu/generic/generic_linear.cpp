// SPDX-License-Identifier: BSD-3-Clause
// Y = act(X·Wᵀ + bias + residual) for every format and value type, on any processor.
//
//       16 tokens
//     ┌───────────┐
//  in │ tile of X │  transposed and widened once for every 16 tokens
//     └───────────┘
//
// A row's kept columns and values are decoded once; each then costs 16 multiply-adds, which any
// compiler turns into vectors. float64 and int8 are computed in float64, everything else in
// float32. This runs where no faster row does: an unknown processor, a dtype without a kernel of
// its own, a file just loaded.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/activation.h"
#include "core/half.h"
#include "core/layouts.h"
#include "core/requantize.h"
#include "core/row_source.h"
#include "cpu/registration.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

constexpr std::int64_t kTokens = 16;

/// Everything one thread needs, allocated once a call.
template <typename Compute>
struct Buffers {
  std::vector<Compute> tile;  ///< [in][kTokens]
  std::vector<std::int32_t> cols;
  std::vector<std::byte> raw;
  std::vector<Compute> values;

  explicit Buffers(const PackedView& weight)
      : tile(static_cast<std::size_t>(weight.in() * kTokens)),
        cols(static_cast<std::size_t>(weight.in())),
        raw(static_cast<std::size_t>(weight.in() * dtype_bytes(weight.dtype()))),
        values(static_cast<std::size_t>(weight.in())) {}
};

template <typename Compute>
Compute element(DType dtype, const void* data, std::int64_t index) {
  return detail::load_as<Compute>(dtype, static_cast<const std::byte*>(data), index);
}

template <typename Compute>
void fill_tile(const LinearArgs& args, DType dtype, std::int64_t batch, std::int64_t token,
               std::int64_t tokens, std::vector<Compute>& tile) {
  std::fill(tile.begin(), tile.end(), Compute{0});
  std::vector<Compute> row(static_cast<std::size_t>(args.weight.in()));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t begin = batch * args.x_batch_stride + (token + t) * args.x_stride;
    detail::load_row(dtype, static_cast<const std::byte*>(args.x) + begin * dtype_bytes(dtype),
                     args.weight.in(), 1, row.data());
    for (std::size_t k = 0; k < row.size(); ++k) {
      tile[k * kTokens + static_cast<std::size_t>(t)] = row[k];
    }
  }
}

/// What a sum of a quantized call is multiplied by; otherwise `one`.
template <typename Compute>
Compute scale_of(const LinearArgs& args, std::int64_t batch, std::int64_t token, std::int64_t row,
                 Compute one) {
  if (args.x_scale == nullptr) return one;
  const auto x = static_cast<Compute>(args.x_scale[batch * args.tokens + token]);
  if (args.weight_scale == nullptr) return x;
  return x * static_cast<Compute>(args.weight_scale[batch * args.weight.out() + row]);
}

/// Rows [row_begin, row_end) for up to kTokens tokens; `dtype` of bias, residual and Y.
template <typename Compute>
void run_rows(const LinearArgs& args, const detail::PackedSource& source, Buffers<Compute>& buffers,
              DType dtype, std::int64_t batch, std::int64_t token, std::int64_t tokens,
              std::int64_t row_begin, std::int64_t row_end) {
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t count = source.entries(batch, row, buffers.cols.data(), buffers.raw.data());
    detail::load_row(args.weight.dtype(), buffers.raw.data(), count, 1, buffers.values.data());
    Compute sum[kTokens] = {};
    for (std::int64_t i = 0; i < count; ++i) {
      const auto k = static_cast<std::size_t>(i);
      const Compute* x = buffers.tile.data() + buffers.cols[k] * kTokens;
      for (std::int64_t t = 0; t < kTokens; ++t) sum[t] += buffers.values[k] * x[t];
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      Compute result = sum[t] * scale_of(args, batch, token + t, row, Compute{1});
      if (args.bias != nullptr) {
        result += element<Compute>(dtype, args.bias, batch * args.weight.out() + row);
      }
      if (args.residual != nullptr) {
        result += element<Compute>(
            dtype, args.residual,
            batch * args.residual_batch_stride + (token + t) * args.residual_stride + row);
      }
      result = detail::activate(args.activation, result);
      const std::int64_t at = batch * args.y_batch_stride + (token + t) * args.y_stride + row;
      if (args.y_scale > 0.0f) {
        static_cast<std::int8_t*>(args.y)[at] = detail::requantized(result, args.y_scale);
      } else {
        detail::store_as(dtype, static_cast<std::byte*>(args.y), at, result);
      }
    }
  }
}

template <typename Compute>
void run(const LinearArgs& args) {
  const bool quantized = args.x_scale != nullptr;
  const DType x_dtype = args.weight.dtype();
  const DType dtype = quantized ? DType::kFloat32 : x_dtype;
  const std::int64_t out = args.weight.out();
  const std::int64_t parts =
      std::clamp<std::int64_t>(args.parallel.threads, 1, std::max<std::int64_t>(out, 1));
  parallel_for(args.parallel, args.weight.batch() * parts,
               [&](std::int64_t begin, std::int64_t end) {
                 const auto source = detail::packed_source(args.weight);
                 Buffers<Compute> buffers(args.weight);
                 for (std::int64_t item = begin; item < end; ++item) {
                   const std::int64_t batch = item / parts;
                   const std::int64_t part = item % parts;
                   for (std::int64_t token = 0; token < args.tokens; token += kTokens) {
                     const std::int64_t tokens = std::min(kTokens, args.tokens - token);
                     fill_tile(args, x_dtype, batch, token, tokens, buffers.tile);
                     run_rows(args, *source, buffers, dtype, batch, token, tokens,
                              out * part / parts, out * (part + 1) / parts);
                   }
                 }
               });
}

/// Decoding a kept value costs about as much as its sixteen multiply-adds; measured on zen5-avx512,
/// 2026-11-23.
double seconds(const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
  constexpr double kSecondsPerValue = 6e-9;
  const double kept = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                      static_cast<double>(desc.in) * desc.density;
  const double panels = static_cast<double>(detail::ceil_div(tokens, kTokens));
  return kept * panels * kSecondsPerValue / std::max(threads, 1);
}

constexpr struct {
  std::string_view name;
  Layout layout;
  DType dtype;
} kRows[] = {
    {"generic_linear_bitmask_f64", Layout::kBitmask, DType::kFloat64},
    {"generic_linear_bitmask_f32", Layout::kBitmask, DType::kFloat32},
    {"generic_linear_bitmask_f16", Layout::kBitmask, DType::kFloat16},
    {"generic_linear_bitmask_bf16", Layout::kBitmask, DType::kBFloat16},
    {"generic_linear_bitmask_int8", Layout::kBitmask, DType::kInt8},
    {"generic_linear_nm_int8", Layout::kNm, DType::kInt8},
    {"generic_linear_bsr_int8", Layout::kBsr, DType::kInt8},
    {"generic_linear_fanin_int8", Layout::kFanIn, DType::kInt8},
    {"generic_linear_rowquads512_int8", Layout::kRowQuads512, DType::kInt8},
    {"generic_linear_nm_f64", Layout::kNm, DType::kFloat64},
    {"generic_linear_nm_f32", Layout::kNm, DType::kFloat32},
    {"generic_linear_nm_f16", Layout::kNm, DType::kFloat16},
    {"generic_linear_nm_bf16", Layout::kNm, DType::kBFloat16},
    {"generic_linear_bsr_f64", Layout::kBsr, DType::kFloat64},
    {"generic_linear_bsr_f32", Layout::kBsr, DType::kFloat32},
    {"generic_linear_bsr_f16", Layout::kBsr, DType::kFloat16},
    {"generic_linear_bsr_bf16", Layout::kBsr, DType::kBFloat16},
    {"generic_linear_fanin_f64", Layout::kFanIn, DType::kFloat64},
    {"generic_linear_fanin_f32", Layout::kFanIn, DType::kFloat32},
    {"generic_linear_fanin_f16", Layout::kFanIn, DType::kFloat16},
    {"generic_linear_fanin_bf16", Layout::kFanIn, DType::kBFloat16},
};

}  // namespace

void register_generic_linear() {
  for (const auto& row : kRows) {
    LinearKernel kernel;
    kernel.name = row.name;
    kernel.layout = row.layout;
    kernel.weight_dtype = row.dtype;
    kernel.activation_dtype = row.dtype;
    kernel.seconds = seconds;
    // Sums of int8 products are whole numbers, exact in float64.
    const bool wide = row.dtype == DType::kFloat64 || row.dtype == DType::kInt8;
    kernel.run = wide ? run<double> : run<float>;
    register_linear_kernel(kernel);
  }
}

}  // namespace gossamer::cpu
