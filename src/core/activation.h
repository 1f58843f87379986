// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cmath>

#include "gossamer/activation.h"

namespace gossamer::detail {

/// The activation as its formula says, for kernels that compute one element at a time.
template <typename T>
T activate(Activation activation, T x) {
  switch (activation) {
    case Activation::kRelu:
      return x < T{0} ? T{0} : x;
    case Activation::kGelu:
      return T{0.5} * x * std::erfc(-x * static_cast<T>(0.70710678118654752440));
    case Activation::kGeluTanh: {
      const T u =
          static_cast<T>(0.79788456080286535588) * (x + static_cast<T>(0.044715) * x * x * x);
      return x / (T{1} + std::exp(-T{2} * u));
    }
    case Activation::kSilu:
      return x / (T{1} + std::exp(-x));
    case Activation::kRelu2:
      return x < T{0} ? T{0} : x * x;
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace gossamer::detail
