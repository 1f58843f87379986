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

inline constexpr std::array<Probe, 12> kProbes{{{0, 1},
                                                {1, 2},
                                                {1, 8},
                                                {2, 9},
                                                {2, 32},
                                                {3, 33},
                                                {3, 128},
                                                {4, 129},
                                                {4, 512},
                                                {5, 513},
                                                {5, 2048},
                                                {6, 4096}}};
inline constexpr std::size_t kProbeCount = kProbes.size();

/// The token count that stands for a bucket where one is enough.
constexpr std::int64_t largest_probe(int bucket) {
  std::int64_t tokens = 1;
  for (const Probe& probe : kProbes) {
    if (probe.bucket == bucket) tokens = probe.tokens;
  }
  return tokens;
}

}  // namespace gossamer::plan
