// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "plan/decide.h"
#include "plan/series.h"

// A processor that others share has phases of a tenth of a second in which dense alone takes twice
// as long (AMX on a virtual Xeon, 2026-12-01: two of 45 bfloat16 layers were packed that lose a
// quarter and a third). What a plan chose is therefore timed once more, late.
namespace gossamer::plan {

/// Where the plan's choice in each bucket is nearest to dense.
inline std::vector<Contested> choices_of(const Evidence& evidence, const Plan& plan) {
  std::vector<Contested> found;
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    const PlanChoice& choice = plan.choices[static_cast<std::size_t>(evidence.probes[p].bucket)];
    if (!evidence.probed[p] || choice.tokens != evidence.probes[p].tokens) continue;
    for (std::size_t c = 0; c < evidence.candidates.size(); ++c) {
      if (evidence.candidates[c].name == choice.kernel) found.push_back({c, p});
    }
  }
  return found;
}

/// Takes over `late`, the least times of the row at `place` and of dense beside it, where dense was
/// clearly slower before: for every row at that token count, each by its own least time. True where
/// it was.
inline bool judge_late(Evidence& evidence, const Contested& place, const Timing& late) {
  bool changed = false;
  for (std::size_t c = 0; c < evidence.candidates.size(); ++c) {
    Timing& timing = evidence.candidates[c].at[place.probe];
    if (!timing.known) continue;
    double least = timing.least > 0.0 ? timing.least : timing.seconds;
    if (c == place.candidate) least = std::min(least, late.seconds);
    const double ratio = late.dense_seconds / least;
    if (ratio > kPhase * timing.ratio) continue;
    timing.dense_seconds = late.dense_seconds;
    timing.ratio = ratio;
    timing.spread = 0.0;
    changed = true;
  }
  return changed;
}

}  // namespace gossamer::plan
