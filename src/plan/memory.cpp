// SPDX-License-Identifier: BSD-3-Clause
#include "plan/memory.h"

#include "gossamer/error.h"

namespace gossamer::plan {

std::int64_t layout_bytes(const PackedView& weight, Layout layout) {
  return packed_size_bytes(layout, weight.pattern(), weight.dtype(), weight.batch(), weight.out(),
                           weight.in(), weight.kept());
}

bool is_small(const PackedView& weight, Layout layout) {
  constexpr double kLargest = 1.15;
  try {
    return static_cast<double>(layout_bytes(weight, layout)) <=
           kLargest * static_cast<double>(layout_bytes(weight, format_for(weight.pattern())));
  } catch (const Error&) {
    return false;  // it holds other patterns
  }
}

std::int64_t trial_bytes(const PackedView& weight, bool quantized) {
  constexpr double kPeak = 2.25;  // inputs, results and the allocator's corners take the rest
  const std::int64_t element = quantized ? 4 : dtype_bytes(weight.dtype());
  const std::int64_t layer = weight.batch() * weight.out() * weight.in() * element;
  if (layer < kLargeLayerBytes) return kLargeLayerBytes * 4;
  return static_cast<std::int64_t>((kPeak - 1.0) * static_cast<double>(layer)) -
         weight.size_bytes();
}

}  // namespace gossamer::plan
