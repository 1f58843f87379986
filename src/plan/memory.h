// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/packed_weight.h"

// What a plan may take in memory: of the layout that it chooses, and of those that it tries.
namespace gossamer::plan {

/// Of the weight in a layout, taps and padding of groups aside. Throws Error where that holds other
/// patterns.
std::int64_t layout_bytes(const PackedView& weight, Layout layout);

/// Whether MemoryMode::kLow admits a layout: at most 1.15 times the bytes of the weight's format.
bool is_small(const PackedView& weight, Layout layout);

/// The least size at which layouts are left out for the memory that trying them takes; smaller
/// layers are nothing beside a process.
inline constexpr std::int64_t kLargeLayerBytes = std::int64_t{8} << 20;

/// Bytes that converted copies may take side by side while a layer is planned, so that with the
/// dense layer and the weight as it is given the peak stays below 2.5 times the layer. `quantized`:
/// the layer is float32, whatever the weight's values are.
std::int64_t trial_bytes(const PackedView& weight, bool quantized);

}  // namespace gossamer::plan
