// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace gossamer::detail {

/// y / scale to nearest (ties to even), at most 127 either way; 0 for NaN.
template <typename T>
std::int8_t requantized(T y, float scale) {
  if (std::isnan(y)) return 0;
  const T steps = y / static_cast<T>(scale);
  return static_cast<std::int8_t>(std::nearbyint(std::clamp(steps, T{-127}, T{127})));
}

}  // namespace gossamer::detail
