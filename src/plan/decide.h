// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/linear.h"
#include "plan/probes.h"

// From times to a plan: pure functions, the same for measured and modelled times.
//
// Of a layout, each bucket takes the row that is best there; of the layouts, the one with the
// least geometric mean of times over the buckets is chosen among those that are slower than dense
// in no bucket. Rows and layouts are compared with each other by their least times, which other
// work on the machine spoils last, and with dense by the median of ratios. Where MemoryMode::kSpeed
// keeps a dense copy, a bucket that would be slower somewhere, or gains less than kCallSeconds,
// runs dense and counts as 1. Two layouts are judged as one that has the rows of both, and held
// where one alone would leave the layer plain or falls kSecondRatio behind in some bucket
// (docs/architecture.md says why so much).
namespace gossamer::plan {

inline constexpr double kWinRatio = 1.05;        ///< sparse must win by 5 % somewhere
inline constexpr double kNotSlowerRatio = 0.97;  ///< and lose nowhere by more than noise
/// and the call: what PyTorch's door may cost a packed layer more than a dense one. It decides
/// nothing but layers of a few microseconds, and those only where the packed layer gains on the
/// whole.
inline constexpr double kCallSeconds = 3e-6;
/// What a second layout must gain over the best single one in some bucket: up to there the single
/// one keeps the promise that a choice takes at most 1.10 times as long as the best row there is.
inline constexpr double kSecondRatio = 1.10;

/// One row beside dense at one token count.
struct Timing {
  bool known = false;
  double seconds = 0.0;        ///< the door's overhead included
  double dense_seconds = 0.0;  ///< 0 where there is no dense peer
  double ratio = 0.0;          ///< dense / sparse, the median over rounds
  double spread = 0.0;         ///< two standard errors of the ratio; 0 for a model
  double least = 0.0;          ///< of the rounds' seconds; 0 where `seconds` is all there is
};

struct Candidate {
  std::string_view name;
  Layout layout = Layout::kBitmask;
  bool small = true;       ///< its layout may be one of two: hardly larger than the format.
                           ///< Of account with times alone, and so once the layout is made
  std::int64_t bytes = 0;  ///< of the weight in its layout; 0 where unknown
  std::array<Timing, kProbeCount> at{};
  std::array<double, kProbeCount> model{};  ///< predicted seconds; 0 where no model is at hand
};

struct Evidence {
  std::vector<Candidate> candidates;
  std::array<Probe, kProbeCount> probes = kProbes;
  std::string_view unit = "token";  ///< what probes count: tokens, or pixels of a convolution
  std::array<bool, kProbeCount> probed{};  ///< a prefix: small token counts come first
  /// Buckets up to this one choose a row, and with MemoryMode::kSpeed whether dense runs, but count
  /// neither for nor against packing, unless no other was timed. None: -1.
  int last_aside = -1;
  bool has_dense = false;
  bool modelled = false;        ///< both times come from a model
  bool dense_modelled = false;  ///< dense's alone does
  std::string limit;            ///< why larger token counts were not timed; empty where all were
};

/// A time whose distance from a threshold is within its spread.
struct Contested {
  std::size_t candidate = 0;
  std::size_t probe = 0;
};

struct Verdict {
  Plan plan;
  std::vector<Contested> contested;
  bool disturbed = false;  ///< other work held the processors: not a verdict to keep for long
};

/// `forced`: who forced the single candidate ("GOSSAMER_KERNEL", "kernel"), empty for a free
/// choice. There is at least one candidate and one probed token count.
Verdict decide(const Evidence& evidence, MemoryMode memory, const std::string& forced);

/// The plan of a weight that nothing was timed for: dense everywhere, for one reason.
Plan plain_plan(const PackedView& weight, std::string reason);

/// A verdict in a weight's own terms: a plain one keeps the weight's layout, and of two layouts the
/// first, from which it is unpacked, sliced and saved, is the format where one of them is.
Plan for_weight(const PackedView& weight, Plan plan);

}  // namespace gossamer::plan
