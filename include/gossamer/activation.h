// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer {

/// Applied to the result, after bias and residual. NaN stays NaN.
enum class Activation : std::int32_t {
  kNone = 0,
  kRelu = 1,
  kGelu = 2,      ///< x·Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016,
                  ///< arXiv:1606.08415)
  kGeluTanh = 3,  ///< x·σ(2u), u = √(2/π)·(x + 0.044715·x³): the same paper's approximation
  kSilu = 4,      ///< x·σ(x)
  kRelu2 = 5,     ///< max(x, 0)², squared ReLU (So et al. 2021, arXiv:2109.08668)
};

/// One past the last number of an Activation.
inline constexpr std::int32_t kActivationCount = 6;

}  // namespace gossamer
