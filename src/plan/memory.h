// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <map>

#include "gossamer/packed_weight.h"

// What a plan may take in memory: of the layout that it chooses, and of those that it tries.
namespace gossamer::plan {

/// Of the weight in a layout, at most: rows of row pairs may share more. Taps and padding of groups
/// aside. Throws Error where the layout holds other patterns.
std::int64_t layout_bytes(const PackedView& weight, Layout layout);

/// What layouts take beside the weight's format: MemoryMode::kLow admits those that take at most
/// 1.15 times as much, and so does a plan of two layouts.
class LayoutSizes {
 public:
  explicit LayoutSizes(const PackedView& weight) : weight_(weight) {}

  /// Counted exactly where an upper bound does not say it, once a layout.
  bool is_small(Layout layout);
  /// What the weight takes in a layout, at most; 0 where the layout holds other patterns.
  std::int64_t bytes(Layout layout);
  /// is_small of a layout that takes so many bytes.
  bool is_small(std::int64_t bytes) const;

 private:
  PackedView weight_;
  std::map<Layout, std::int64_t> known_;
};

/// The least size at which layouts are left out for the memory that trying them takes; smaller
/// layers are nothing beside a process.
inline constexpr std::int64_t kLargeLayerBytes = std::int64_t{8} << 20;

/// Of the dense layer. `quantized`: it is float32, whatever the weight's values are.
std::int64_t dense_bytes(const PackedView& weight, bool quantized);

/// Bytes that the inputs and results of a timed call may take beside a dense layer of so many:
/// dense has its own, and larger ones would lift the peak above 2.5 times the layer.
std::int64_t input_bytes(std::int64_t layer_bytes);

/// Bytes that converted copies may take side by side while a layer is planned, so that with the
/// dense layer and the weight as it is given the peak stays below 2.5 times the layer.
std::int64_t trial_bytes(const PackedView& weight, bool quantized);

}  // namespace gossamer::plan
