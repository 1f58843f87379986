// SPDX-License-Identifier: BSD-3-Clause
#include "plan/memory.h"

#include <algorithm>

#include "core/layouts.h"
#include "gossamer/error.h"

namespace gossamer::plan {

std::int64_t layout_bytes(const PackedView& weight, Layout layout) {
  return packed_size_bytes(layout, weight.pattern(), weight.dtype(), weight.batch(), weight.out(),
                           weight.in(), weight.kept());
}

bool LayoutSizes::is_small(std::int64_t bytes) const {
  constexpr double kLargest = 1.15;
  const std::int64_t format = layout_bytes(weight_, format_for(weight_.pattern()));
  return static_cast<double>(bytes) <= kLargest * static_cast<double>(format);
}

bool LayoutSizes::is_small(Layout layout) {
  const std::int64_t size = bytes(layout);
  return size > 0 && is_small(size);
}

std::int64_t LayoutSizes::bytes(Layout layout) {
  if (const auto known = known_.find(layout); known != known_.end()) return known->second;
  const auto counted = [&]() -> std::int64_t {
    try {
      const std::int64_t most = layout_bytes(weight_, layout);
      if (is_small(most) || detail::row_pairs_block(layout) == 0) return most;
      return converted_size_bytes(weight_, layout);
    } catch (const Error&) {
      return 0;
    }
  };
  return known_[layout] = counted();
}

std::int64_t dense_bytes(const PackedView& weight, bool quantized) {
  const std::int64_t element = quantized ? 4 : dtype_bytes(weight.dtype());
  return weight.batch() * weight.out() * weight.in() * element;
}

std::int64_t input_bytes(std::int64_t layer_bytes) {
  constexpr double kOfLayer = 0.3;
  return std::max(4 * kLargeLayerBytes,
                  static_cast<std::int64_t>(kOfLayer * static_cast<double>(layer_bytes)));
}

std::int64_t trial_bytes(const PackedView& weight, bool quantized) {
  constexpr double kPeak = 2.2;  // inputs, results and the allocator's corners take the rest
  const std::int64_t layer = dense_bytes(weight, quantized);
  if (layer < kLargeLayerBytes) return kLargeLayerBytes * 4;
  return static_cast<std::int64_t>((kPeak - 1.0) * static_cast<double>(layer)) -
         weight.size_bytes();
}

}  // namespace gossamer::plan
