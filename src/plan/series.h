// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "plan/decide.h"

namespace gossamer::plan {

inline constexpr double kHopeless = 1.25;        ///< times the best warm-up of its layout
inline constexpr double kDenseShare = 0.25;      ///< of the budget, for one dense call
inline constexpr double kFirstPass = 0.8;        ///< of the budget; the rest is for contested times
inline constexpr double kSampleSeconds = 20e-6;  ///< shorter calls are timed several at a time
inline constexpr int kMaxCallsPerSample = 64;
/// Shorter calls follow an untimed one of their own: what a neighbour left in the caches costs a
/// dense layer of a few MB more than a packed one, 7 % of a call of 1 ms.
inline constexpr double kWarmedSeconds = 2e-3;
inline constexpr int kMinRounds = 3;
inline constexpr int kShortMinRounds = 5;
inline constexpr int kMaxRounds = 21;
inline constexpr int kMaxPasses = 3;     ///< over contested times
inline constexpr double kPhase = 0.9;    ///< of a ratio: a later one that is lower counts instead
inline constexpr double kStalled = 4.0;  ///< times what a call should take: other work is suspected
inline constexpr std::size_t kTrials = 4;      ///< of a call that may have stalled
inline constexpr double kTurnSeconds = 20e-3;  ///< about what a scheduler gives to other work

/// A probe's part of what is left for it and all later ones: larger token counts have longer calls.
inline double share_of_rest(std::size_t p) {
  constexpr std::array<double, kProbeCount> kWeights{1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 8, 8};
  double rest = 0.0;
  for (std::size_t i = p; i < kProbeCount; ++i) rest += kWeights[i];
  return kWeights[p] / rest;
}

inline int calls_per_sample(double seconds) {
  return std::clamp(static_cast<int>(kSampleSeconds / std::max(seconds, 1e-9)), 1,
                    kMaxCallsPerSample);
}

inline double median(std::vector<double> values) {
  const std::size_t half = values.size() / 2;
  std::sort(values.begin(), values.end());
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// What measuring has cost so far. Where other work holds a processor, one of a call's threads
/// waits for it and a call of microseconds takes milliseconds; such waits are not charged, or a few
/// of them would use up the budget before every token count was seen.
class Budget {
 public:
  explicit Budget(double seconds) : budget_(seconds) {}

  double spent() const { return watch_.seconds() - std::min(waited_, allowance()); }
  double left(double share = 1.0) const { return share * budget_ - spent(); }
  double wall() const { return watch_.seconds(); }

  /// `calls` took `seconds` each and should have taken about `expected`.
  void note(double seconds, double expected, int calls = 1) {
    if (seconds > kStalled * expected) waited_ += (seconds - expected) * calls;
  }

  /// Waits took so much that they were charged in the end: what was timed may be too little.
  bool disturbed() const { return waited_ > allowance(); }

 private:
  double allowance() const { return std::max(3.0 * budget_, 0.5); }

  Stopwatch watch_;
  double budget_;
  double waited_ = 0.0;
};

/// The least of a few calls: two if they take less than a millisecond, up to kTrials while all have
/// taken more than kStalled times `expected`. A call longer than a scheduler's turn is taken as is.
template <typename Call>
double warmed_seconds(Budget& budget, double expected, const Call& call) {
  std::vector<double> trials;
  double least = std::numeric_limits<double>::infinity();
  const auto suspect = [&] {
    return least < kTurnSeconds && (least > kStalled * expected || trials.size() < 2);
  };
  while (trials.size() < kTrials && (trials.empty() || suspect())) {
    if (trials.size() == 1 && least >= 1e-3 && least <= kStalled * expected) break;
    trials.push_back(call());
    least = std::min(least, trials.back());
  }
  for (const double seconds : trials) budget.note(seconds, least);
  return least;
}

/// The rounds of one row at one token count; dense[i] was timed beside sparse[i].
struct Series {
  std::vector<double> sparse;
  std::vector<double> dense;

  Timing timing() const {
    Timing t;
    if (sparse.empty()) return t;
    t.known = true;
    t.seconds = typical(sparse);
    t.least = *std::min_element(sparse.begin(), sparse.end());
    if (dense.empty()) return t;
    t.dense_seconds = typical(dense);
    std::vector<double> ratios(sparse.size());
    for (std::size_t i = 0; i < sparse.size(); ++i) ratios[i] = dense[i] / sparse[i];
    const bool stalled = t.seconds < median(sparse) || t.dense_seconds < median(dense);
    t.ratio = stalled ? t.dense_seconds / t.seconds : median(ratios);
    t.spread = spread(std::move(ratios), t.ratio);
    return t;
  }

  /// The least times instead of the median ones: what is left to judge by where the processor is so
  /// busy with other work that ratios stay in doubt, since other work can only make a call slower.
  Timing least() const {
    Timing t = timing();
    if (dense.empty()) return t;
    t.seconds = *std::min_element(sparse.begin(), sparse.end());
    t.dense_seconds = *std::min_element(dense.begin(), dense.end());
    t.ratio = t.dense_seconds / t.seconds;
    t.spread = 0.0;
    return t;
  }

 private:
  // The median, unless most calls waited for other work: then the least.
  static double typical(const std::vector<double>& values) {
    const double least = *std::min_element(values.begin(), values.end());
    const double middle = median(values);
    return middle > kStalled * least ? least : middle;
  }

  // Two standard errors of a median of normal noise: 2 · 1.2533 · (IQR / 1.349) / sqrt(n). Where
  // the quotient of the minima disagrees, the doubt grows by half of the difference. Fewer than
  // three rounds say nothing: any of them may have been disturbed.
  double spread(std::vector<double> ratios, double middle) const {
    if (ratios.size() < 3) return std::numeric_limits<double>::infinity();
    const double minima = *std::min_element(dense.begin(), dense.end()) /
                          *std::min_element(sparse.begin(), sparse.end());
    std::sort(ratios.begin(), ratios.end());
    const double range = ratios[ratios.size() * 3 / 4] - ratios[ratios.size() / 4];
    const double errors = 1.86 * range / std::sqrt(static_cast<double>(ratios.size()));
    return std::max(errors, 0.5 * std::abs(middle - minima));
  }
};

}  // namespace gossamer::plan
