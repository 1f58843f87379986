// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/parallel.h"

namespace gossamer {

/// Symmetric int8 of a scale a token, what quantized calls take (LinearArgs::x_scale):
///
///   scale[t] = max |x[t]| / 127,   q[t][k] = x[t][k] / scale[t] to nearest,
///
/// so that |x − scale·q| <= scale/2, up to rounding in float32. A token of zeros, or of nothing
/// larger than 4e-37, gets scale 0. A token with NaN or an infinity gets scale NaN and zeros: all
/// its results become NaN, whatever the weight keeps.
struct QuantizeArgs {
  const float* x = nullptr;  ///< [tokens, in]
  std::int64_t x_stride = 0;
  std::int64_t tokens = 0;
  std::int64_t in = 0;
  std::int8_t* q = nullptr;  ///< [tokens, in], contiguous
  float* scale = nullptr;    ///< [tokens]
  ParallelFor parallel{};
};

/// By the widest instructions of this machine.
void quantize_tokens(const QuantizeArgs& args);

}  // namespace gossamer
