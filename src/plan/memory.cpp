// SPDX-License-Identifier: BSD-3-Clause
#include "plan/memory.h"

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
  if (const auto known = known_.find(layout); known != known_.end()) return known->second;
  const auto measured = [&] {
    try {
      return is_small(layout_bytes(weight_, layout)) ||
             (detail::row_pairs_block(layout) != 0 &&
              is_small(converted_size_bytes(weight_, layout)));
    } catch (const Error&) {
      return false;  // it holds other patterns
    }
  };
  return known_[layout] = measured();
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
