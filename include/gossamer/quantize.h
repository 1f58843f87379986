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
///
/// With a fixed_scale above 0, which calibration found, that is the scale of every finite token,
/// and what lies beyond 127 of its steps becomes ±127: one pass over X instead of two.
struct QuantizeArgs {
  const float* x = nullptr;  ///< [tokens, in]
  std::int64_t x_stride = 0;
  std::int64_t tokens = 0;
  std::int64_t in = 0;
  std::int8_t* q = nullptr;  ///< [tokens, in], contiguous
  float* scale = nullptr;    ///< [tokens]
  float fixed_scale = 0.0f;  ///< of all tokens; 0: each its own
  ParallelFor parallel{};
};

/// By the widest instructions of this machine. Throws for a fixed_scale that is neither 0 nor a
/// finite number above 1.2e-38.
void quantize_tokens(const QuantizeArgs& args);

/// Results of one layer as the int8 inputs of the next: q[i] = y[i] / scale to nearest, at most 127
/// either way, 0 for NaN. What LinearArgs::y_scale does behind a product, for results that are in
/// memory. `scale` is finite and above 1.2e-38, so that it has a reciprocal; else it throws.
void requantize(const float* y, std::int64_t count, float scale, std::int8_t* q,
                const ParallelFor& parallel);

}  // namespace gossamer
