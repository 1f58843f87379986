// SPDX-License-Identifier: BSD-3-Clause
#include "plan/call_inputs.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "core/half.h"

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

}  // namespace

CallInputs::CallInputs(const LinearDesc& desc, const ParallelFor& parallel)
    : desc_(desc), parallel_(parallel), tile_(random_tile(desc.activation_dtype)) {
  if (desc_.epilogue.bias) bias_ = random_elements(desc_.batch * desc_.out);
}

std::int64_t CallInputs::bytes(std::int64_t tokens) const {
  const std::int64_t columns = desc_.in + desc_.out * (desc_.epilogue.residual ? 2 : 1);
  return desc_.batch * tokens * columns * dtype_bytes(desc_.activation_dtype);
}

CallInputs::Buffer CallInputs::random_elements(std::int64_t count) const {
  const auto bytes = static_cast<std::size_t>(count * dtype_bytes(desc_.activation_dtype));
  Buffer buffer(static_cast<std::byte*>(
      ::operator new(std::max<std::size_t>(bytes, 64), std::align_val_t{64})));
  for (std::size_t done = 0; done < bytes; done += tile_.size()) {
    std::memcpy(buffer.get() + done, tile_.data(), std::min(tile_.size(), bytes - done));
  }
  return buffer;
}

LinearArgs CallInputs::args(const PackedView& weight, std::int64_t tokens) {
  if (tokens > tokens_) {
    x_ = random_elements(desc_.batch * tokens * desc_.in);
    y_ = random_elements(desc_.batch * tokens * desc_.out);
    if (desc_.epilogue.residual) residual_ = random_elements(desc_.batch * tokens * desc_.out);
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
  return args;
}

}  // namespace gossamer::plan
