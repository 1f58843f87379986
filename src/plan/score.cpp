// SPDX-License-Identifier: BSD-3-Clause
#include "plan/score.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "gossamer/error.h"

namespace gossamer::plan {
namespace {

/// What int8 weights want: `rowquads512` takes twice as much as `bitmask`, which reads less with
/// one token, so that both take 1.5 times as much as the one that would be held alone.
constexpr double kPairBytes = 1.5;

/// A row that is nowhere slower than dense goes before one that is faster on average.
bool better(const BucketScore& a, const BucketScore& b) {
  const bool a_safe = a.worst >= kNotSlowerRatio;
  const bool b_safe = b.worst >= kNotSlowerRatio;
  if (a_safe != b_safe) return a_safe;
  return a_safe ? a.seconds < b.seconds : a.worst > b.worst;
}

/// Of what a plan runs in the bucket: dense takes so many times what the row takes.
double seconds_of(const BucketScore& s) { return s.dense ? s.seconds * s.mean : s.seconds; }

}  // namespace

// Without a dense peer rows are compared with the fastest row of the same token count.
double Scorer::ratio(std::size_t candidate, std::size_t probe) const {
  const Timing& timing = evidence_.candidates[candidate].at[probe];
  if (evidence_.has_dense) return timing.ratio;
  double fastest = timing.seconds;
  for (const Candidate& other : evidence_.candidates) {
    if (other.at[probe].known) fastest = std::min(fastest, other.at[probe].seconds);
  }
  return fastest / timing.seconds;
}

double Scorer::ratio_with(double extra, std::size_t candidate, std::size_t probe) const {
  const double seconds = evidence_.candidates[candidate].at[probe].seconds;
  return ratio(candidate, probe) * seconds / std::max(seconds + extra, 0.01 * seconds);
}

// Nothing where the row was not timed at every probed token count of the bucket.
std::optional<BucketScore> Scorer::score(std::size_t candidate, int bucket) const {
  BucketScore s;
  s.candidate = candidate;
  double log_sum = 0.0;
  double log_with_call = 0.0;
  double log_seconds = 0.0;
  int count = 0;
  std::size_t last = 0;
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    if (evidence_.probes[p].bucket != bucket || !evidence_.probed[p]) continue;
    last = p;
    const Timing& timing = evidence_.candidates[candidate].at[p];
    if (!timing.known) return std::nullopt;
    const double r = ratio(candidate, p);
    if (count == 0 || r < s.worst) {
      s.worst = r;
      s.worst_probe = p;
    }
    const double beyond_call = ratio_with(-kCallSeconds, candidate, p);
    if (count == 0 || beyond_call < s.worst_beyond_call) s.worst_beyond_call = beyond_call;
    const double with_call = ratio_with(kCallSeconds, candidate, p);
    if (count == 0 || with_call < s.worst_with_call) s.worst_with_call = with_call;
    log_with_call += std::log(with_call);
    s.spread = std::max(s.spread, timing.spread);
    log_sum += std::log(r);
    log_seconds += std::log(least(candidate, p));
    ++count;
  }
  if (count == 0) return std::nullopt;
  s.mean = std::exp(log_sum / count);
  s.mean_with_call = std::exp(log_with_call / count);
  for (std::size_t p = last + 1; p < kProbeCount; ++p) {
    if (evidence_.probes[p].bucket != bucket) continue;
    log_seconds += std::log(least(candidate, last) * growth(candidate, last, p));
    ++count;
  }
  s.seconds = std::exp(log_seconds / count);
  return s;
}

double Scorer::least(std::size_t candidate, std::size_t probe) const {
  const Timing& timing = evidence_.candidates[candidate].at[probe];
  return timing.least > 0.0 ? timing.least : timing.seconds;
}

// By how much a time is larger at a probe that was not timed: as the model says, or as the tokens.
double Scorer::growth(std::size_t c, std::size_t timed, std::size_t p) const {
  const auto& model = evidence_.candidates[c].model;
  if (model[timed] > 0.0) return model[p] / model[timed];
  return static_cast<double>(evidence_.probes[p].tokens) /
         static_cast<double>(evidence_.probes[timed].tokens);
}

bool Scorer::bucket_probed(int bucket) const {
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    if (evidence_.probes[p].bucket == bucket && evidence_.probed[p]) return true;
  }
  return false;
}

std::optional<LayoutScore> Scorer::score(Layout layout, std::optional<Layout> second) const {
  LayoutScore s;
  s.layout = layout;
  s.second = second;
  double log_sum = 0.0;
  double log_seconds = 0.0;
  double weights = 0.0;
  const bool has_others = bucket_probed(evidence_.last_aside + 1);
  for (int bucket = 0; bucket < kTokenBuckets && bucket_probed(bucket); ++bucket) {
    std::optional<BucketScore> best;
    for (std::size_t c = 0; c < evidence_.candidates.size(); ++c) {
      const Layout own_layout = evidence_.candidates[c].layout;
      if (own_layout != layout && own_layout != second) continue;
      const std::optional<BucketScore> own = score(c, bucket);
      if (own && (!best || better(*own, *best))) best = own;
    }
    if (!best) return std::nullopt;
    const bool slower = evidence_.has_dense && best->worst < kNotSlowerRatio;
    // Where a dense copy is at hand, the packed weight has to earn what its call costs.
    best->dense = evidence_.has_dense && memory_ == MemoryMode::kSpeed && !forced_ &&
                  (best->worst_with_call < kNotSlowerRatio || best->mean_with_call < 1.0);
    best->aside = has_others && bucket <= evidence_.last_aside;
    s.buckets.push_back(*best);
    if (best->aside) continue;
    const bool forgiven = best->worst_beyond_call >= kNotSlowerRatio;
    s.slower |= slower && !forgiven;
    s.forgiven |= slower && forgiven;
    s.wins |= !slower && !best->dense && best->mean >= kWinRatio;
    const double weight = bucket_weight(bucket);
    log_sum += best->dense ? 0.0 : weight * std::log(best->mean);
    log_seconds += weight * std::log(seconds_of(*best));
    weights += weight;
  }
  s.objective = std::exp(log_sum / weights);
  s.seconds = std::exp(log_seconds / weights);
  s.slower |= s.forgiven && s.objective < kWinRatio;
  return s;
}

bool Scorer::is_better(const LayoutScore& a, const LayoutScore& b) const {
  return rank(a) != rank(b) ? rank(a) > rank(b) : a.seconds < b.seconds;
}

LayoutScore Scorer::best_single() const {
  std::optional<LayoutScore> best;
  for (const Candidate& candidate : evidence_.candidates) {
    const std::optional<LayoutScore> own = score(candidate.layout);
    if (own && (!best || is_better(*own, *best))) best = own;
  }
  if (!best) {
    throw Error(ErrorCode::kUnsupported,
                "no layout has a kernel for every token count; plan with another pattern or "
                "dtype, or keep the layer dense");
  }
  return *best;
}

const Candidate& Scorer::row_of(Layout layout) const {
  return *std::find_if(evidence_.candidates.begin(), evidence_.candidates.end(),
                       [layout](const Candidate& c) { return c.layout == layout; });
}

bool Scorer::pairs(Layout first, Layout second, const LayoutScore& single) const {
  if (memory_ == MemoryMode::kSpeed) return true;
  const Candidate& a = row_of(first);
  const Candidate& b = row_of(second);
  if (a.small && b.small) return true;
  if (!a.small && !b.small) return false;
  const Candidate& large = a.small ? b : a;
  const bool packs = !evidence_.has_dense || rank(single) == 2;
  return packs && large.layout == single.layout && a.bytes > 0 && b.bytes > 0 &&
         static_cast<double>(a.bytes + b.bytes) <= kPairBytes * static_cast<double>(large.bytes);
}

std::optional<LayoutScore> Scorer::best_pair(const LayoutScore& single) const {
  if (memory_ == MemoryMode::kLow || forced_) return std::nullopt;
  std::set<Layout> layouts;
  for (const Candidate& candidate : evidence_.candidates) layouts.insert(candidate.layout);
  std::optional<LayoutScore> best;
  for (auto first = layouts.begin(); first != layouts.end(); ++first) {
    for (auto second = std::next(first); second != layouts.end(); ++second) {
      if (!pairs(*first, *second, single)) continue;
      const std::optional<LayoutScore> own = score(*first, *second);
      if (own && (!best || is_better(*own, *best))) best = own;
    }
  }
  return best;
}

double Scorer::gain(const LayoutScore& pair, const LayoutScore& single, std::size_t bucket) {
  return seconds_of(single.buckets[bucket]) / seconds_of(pair.buckets[bucket]);
}

std::size_t Scorer::most_gaining_bucket(const LayoutScore& pair, const LayoutScore& single) const {
  std::size_t most = pair.buckets.size() - 1;
  for (std::size_t bucket = 0; bucket < pair.buckets.size(); ++bucket) {
    if (pair.buckets[bucket].aside) continue;
    if (gain(pair, single, bucket) > gain(pair, single, most)) most = bucket;
  }
  return most;
}

bool Scorer::pays(const LayoutScore& pair, const LayoutScore& single) const {
  if (rank(pair) != rank(single)) return rank(pair) > rank(single);
  const bool packs = !evidence_.has_dense || rank(pair) == 2;
  // The single one may be larger than a layout of a pair can be, and so the quicker.
  return packs && pair.seconds <= single.seconds &&
         gain(pair, single, most_gaining_bucket(pair, single)) >= kSecondRatio;
}

}  // namespace gossamer::plan
