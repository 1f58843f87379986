// SPDX-License-Identifier: BSD-3-Clause
#include "plan/call_inputs.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "core/half.h"
#include "gossamer/quantize.h"

namespace gossamer::plan {
namespace {

// Drawing every element would take longer than the calls themselves. A prime count, so that rows do
// not repeat in step with the tile.
constexpr std::int64_t kTileElements = 16381;
constexpr std::uint32_t kSeed = 20260811;

std::vector<std::byte> random_tile(DType dtype) {
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> tile(static_cast<std::size_t>(kTileElements * dtype_bytes(dtype)));
  for (std::int64_t i = 0; i < kTileElements; ++i) {
    if (dtype == DType::kInt8) {
      const float value = std::clamp(normal(random) * 32.0f, -127.0f, 127.0f);
      detail::store_raw(tile.data() + i, static_cast<std::int8_t>(value));
    } else {
      detail::store_as(dtype, tile.data(), i, normal(random));
    }
  }
  return tile;
}

/// Of Y, bias and residual.
DType result_dtype(const LinearDesc& desc) {
  return desc.epilogue.quantized ? DType::kFloat32 : desc.activation_dtype;
}

}  // namespace

CallInputs::CallInputs(const LinearDesc& desc, const ParallelFor& parallel)
    : desc_(desc),
      parallel_(parallel),
      tile_(random_tile(desc.activation_dtype)),
      result_tile_(random_tile(result_dtype(desc))) {
  const std::int64_t rows = desc_.batch * desc_.out;
  if (desc_.epilogue.bias) bias_ = random_elements(rows * result_bytes(), result_tile_);
  if (desc_.epilogue.quantized) weight_scale_.assign(static_cast<std::size_t>(rows), 0.01f);
}

std::int64_t CallInputs::result_bytes() const { return dtype_bytes(result_dtype(desc_)); }

std::int64_t CallInputs::bytes(std::int64_t tokens) const {
  const std::int64_t results = desc_.out * (desc_.epilogue.residual ? 2 : 1);
  return desc_.batch * tokens *
         (desc_.in * dtype_bytes(desc_.activation_dtype) + results * result_bytes());
}

CallInputs::Buffer CallInputs::random_elements(std::int64_t bytes_wanted,
                                               const std::vector<std::byte>& tile) const {
  const auto bytes = static_cast<std::size_t>(bytes_wanted);
  Buffer buffer(static_cast<std::byte*>(
      ::operator new(std::max<std::size_t>(bytes, 64), std::align_val_t{64})));
  for (std::size_t done = 0; done < bytes; done += tile.size()) {
    std::memcpy(buffer.get() + done, tile.data(), std::min(tile.size(), bytes - done));
  }
  return buffer;
}

LinearArgs CallInputs::args(const PackedView& weight, std::int64_t tokens) {
  if (tokens > tokens_) {
    const std::int64_t rows = desc_.batch * tokens;
    x_ = random_elements(rows * desc_.in * dtype_bytes(desc_.activation_dtype), tile_);
    const std::int64_t bytes = rows * desc_.out * result_bytes();
    y_ = random_elements(bytes, result_tile_);
    if (desc_.epilogue.residual) residual_ = random_elements(bytes, result_tile_);
    if (desc_.epilogue.quantized) {
      x_scale_.assign(static_cast<std::size_t>(rows), 0.01f);
      float_x_ = random_elements(rows * desc_.in * result_bytes(), result_tile_);
    }
    tokens_ = tokens;
  }
  LinearArgs args{.weight = weight, .parallel = parallel_};
  args.tokens = tokens;
  args.x = x_.get();
  args.x_stride = desc_.in;
  args.x_batch_stride = tokens * desc_.in;
  args.y = y_.get();
  args.y_stride = desc_.out;
  args.y_batch_stride = tokens * desc_.out;
  args.bias = bias_.get();
  args.residual = residual_.get();
  args.residual_stride = desc_.out;
  args.residual_batch_stride = tokens * desc_.out;
  args.activation = desc_.epilogue.activation;
  if (desc_.epilogue.quantized) {
    args.x_scale = x_scale_.data();
    args.weight_scale = weight_scale_.data();
  }
  return args;
}

void CallInputs::quantize(std::int64_t tokens) {
  quantize_tokens({.x = reinterpret_cast<const float*>(float_x_.get()),
                   .x_stride = desc_.in,
                   .tokens = desc_.batch * tokens,
                   .in = desc_.in,
                   .q = reinterpret_cast<std::int8_t*>(x_.get()),
                   .scale = x_scale_.data(),
                   .parallel = parallel_});
}

}  // namespace gossamer::plan
