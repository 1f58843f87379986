// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer::cpu {

/// Four rows of scores and of a mask, as 4×4 tiles side by side.
struct TransposableTask {
  const float* scores[4] = {};
  std::uint8_t* mask[4] = {};  ///< written: 1 where kept
  std::int64_t tiles = 0;
};

// The best transposable 2:4 mask of every tile; false where a score is NaN or infinite, and then
// the mask is of no use.
bool generic_transposable_24(const TransposableTask& task);
bool avx2_transposable_24(const TransposableTask& task);

}  // namespace gossamer::cpu
