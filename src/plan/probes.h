// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "gossamer/linear.h"

namespace gossamer::plan {

/// A token count at which rows are compared: both ends of each bucket, so that a verdict holds
/// between them.
struct Probe {
  int bucket = 0;
  std::int64_t tokens = 0;
};

inline constexpr std::array<Probe, 14> kProbes{{{0, 1},
                                                {1, 2},
                                                {1, 4},
                                                {2, 5},
                                                {2, 8},
                                                {3, 9},
                                                {3, 32},
                                                {4, 33},
                                                {4, 128},
                                                {5, 129},
                                                {5, 512},
                                                {6, 513},
                                                {6, 2048},
                                                {7, 4096}}};
inline constexpr std::size_t kProbeCount = kProbes.size();

/// What a bucket counts beside the others where layouts are compared as a whole: 2–4 and 5–8 tokens
/// are apart for the sake of their rows, and together as much as any other.
constexpr double bucket_weight(int bucket) { return bucket == 1 || bucket == 2 ? 0.5 : 1.0; }

/// The token count that stands for a bucket where one is enough.
constexpr std::int64_t largest_probe(int bucket) {
  std::int64_t tokens = 1;
  for (const Probe& probe : kProbes) {
    if (probe.bucket == bucket) tokens = probe.tokens;
  }
  return tokens;
}

}  // namespace gossamer::plan
