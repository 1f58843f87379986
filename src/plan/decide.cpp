// SPDX-License-Identifier: BSD-3-Clause
#include "plan/decide.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "gossamer/error.h"

namespace gossamer::plan {
namespace {

/// A row in a bucket. `mean` is over the bucket's token counts that were timed, `worst` the least
/// of them; `expected` is over all of them, where the model makes up for those that were not.
struct BucketScore {
  std::size_t candidate = 0;
  std::size_t worst_probe = 0;
  double mean = 0.0;
  double expected = 0.0;
  double worst = 0.0;
  double worst_beyond_call = 0.0;  ///< the same with kCallSeconds forgiven
  double spread = 0.0;
  bool dense = false;  ///< kSpeed runs dense here
};

struct LayoutScore {
  Layout layout = Layout::kBitmask;
  std::vector<BucketScore> buckets;  ///< of the probed buckets, smallest first
  double objective = 0.0;
  bool slower = false;
  bool forgiven = false;  ///< slower somewhere, by no more than a call may cost
  bool wins = false;
};

std::string format_seconds(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} µs", seconds * 1e6);
  return fmt::format("{:.2f} ms", seconds * 1e3);
}

class Decider {
 public:
  Decider(const Evidence& evidence, MemoryMode memory, const std::string& forced)
      : evidence_(evidence), memory_(memory), forced_(forced) {}

  Verdict verdict() const {
    const LayoutScore best = best_layout();
    Verdict result;
    result.plan.layout = best.layout;
    result.plan.sparse =
        !forced_.empty() || !evidence_.has_dense || (admissible(best) && best.wins);
    result.plan.reason = result.plan.sparse ? sparse_reason(best) : plain_reason(best);
    for (int bucket = 0; bucket < kTokenBuckets; ++bucket) {
      result.plan.choices[static_cast<std::size_t>(bucket)] =
          choice(best, bucket, result.plan.sparse);
    }
    if (evidence_.has_dense && forced_.empty()) {
      result.contested = contested(best);
      if (!result.plan.sparse) add_contested_layouts(best.layout, result.contested);
    }
    return result;
  }

 private:
  std::string format_tokens(std::int64_t tokens) const {
    return fmt::format("{} {}{}", tokens, evidence_.unit, tokens == 1 ? "" : "s");
  }

  // Without a dense peer rows are compared with the fastest row of the same token count.
  double ratio(std::size_t candidate, std::size_t probe) const {
    const Timing& timing = evidence_.candidates[candidate].at[probe];
    if (evidence_.has_dense) return timing.ratio;
    double fastest = timing.seconds;
    for (const Candidate& other : evidence_.candidates) {
      if (other.at[probe].known) fastest = std::min(fastest, other.at[probe].seconds);
    }
    return fastest / timing.seconds;
  }

  double ratio_beyond_call(std::size_t candidate, std::size_t probe) const {
    const double seconds = evidence_.candidates[candidate].at[probe].seconds;
    const double counted = std::max(seconds - kCallSeconds, 0.01 * seconds);
    return ratio(candidate, probe) * seconds / counted;
  }

  // Nothing where the row was not timed at every probed token count of the bucket.
  std::optional<BucketScore> score(std::size_t candidate, int bucket) const {
    BucketScore s;
    s.candidate = candidate;
    double log_sum = 0.0;
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
      const double beyond_call = ratio_beyond_call(candidate, p);
      if (count == 0 || beyond_call < s.worst_beyond_call) s.worst_beyond_call = beyond_call;
      s.spread = std::max(s.spread, timing.spread);
      log_sum += std::log(r);
      ++count;
    }
    if (count == 0) return std::nullopt;
    s.mean = std::exp(log_sum / count);
    for (std::size_t p = last + 1; p < kProbeCount; ++p) {
      if (evidence_.probes[p].bucket != bucket) continue;
      log_sum += std::log(expected_ratio(candidate, last, p));
      ++count;
    }
    s.expected = std::exp(log_sum / count);
    return s;
  }

  // At a probe that was not timed: dense grows with the tokens, a row as the model says.
  double expected_ratio(std::size_t c, std::size_t timed, std::size_t p) const {
    const auto& model = evidence_.candidates[c].model;
    if (model[timed] <= 0.0) return ratio(c, timed);
    const double tokens = static_cast<double>(evidence_.probes[p].tokens) /
                          static_cast<double>(evidence_.probes[timed].tokens);
    return ratio(c, timed) * tokens * model[timed] / model[p];
  }

  // A row that is nowhere slower than dense goes before one that is faster on average.
  static bool better(const BucketScore& a, const BucketScore& b) {
    const bool a_safe = a.worst >= kNotSlowerRatio;
    const bool b_safe = b.worst >= kNotSlowerRatio;
    if (a_safe != b_safe) return a_safe;
    return a_safe ? a.expected > b.expected : a.worst > b.worst;
  }

  bool bucket_probed(int bucket) const {
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      if (evidence_.probes[p].bucket == bucket && evidence_.probed[p]) return true;
    }
    return false;
  }

  // Nothing where some probed bucket has no row of this layout.
  std::optional<LayoutScore> score(Layout layout) const {
    LayoutScore s;
    s.layout = layout;
    double log_sum = 0.0;
    for (int bucket = 0; bucket < kTokenBuckets && bucket_probed(bucket); ++bucket) {
      std::optional<BucketScore> best;
      for (std::size_t c = 0; c < evidence_.candidates.size(); ++c) {
        if (evidence_.candidates[c].layout != layout) continue;
        const std::optional<BucketScore> own = score(c, bucket);
        if (own && (!best || better(*own, *best))) best = own;
      }
      if (!best) return std::nullopt;
      const bool slower = evidence_.has_dense && best->worst < kNotSlowerRatio;
      best->dense = slower && memory_ == MemoryMode::kSpeed && forced_.empty();
      const bool forgiven = best->worst_beyond_call >= kNotSlowerRatio;
      s.slower |= slower && !forgiven;
      s.forgiven |= slower && forgiven;
      s.wins |= !slower && best->mean >= kWinRatio;
      log_sum += best->dense ? 0.0 : std::log(best->mean);
      s.buckets.push_back(*best);
    }
    s.objective = std::exp(log_sum / static_cast<double>(s.buckets.size()));
    s.slower |= s.forgiven && s.objective < kWinRatio;
    return s;
  }

  bool admissible(const LayoutScore& s) const { return !s.slower || memory_ == MemoryMode::kSpeed; }

  int rank(const LayoutScore& s) const { return !admissible(s) ? 0 : s.wins ? 2 : 1; }

  LayoutScore best_layout() const {
    std::optional<LayoutScore> best;
    for (const Candidate& candidate : evidence_.candidates) {
      const std::optional<LayoutScore> own = score(candidate.layout);
      if (!own) continue;
      if (!best || rank(*own) > rank(*best) ||
          (rank(*own) == rank(*best) && own->objective > best->objective)) {
        best = own;
      }
    }
    if (!best) {
      throw Error(ErrorCode::kUnsupported,
                  "no layout has a kernel for every token count; plan with another pattern or "
                  "dtype, or keep the layer dense");
    }
    return *best;
  }

  const Candidate& candidate(const BucketScore& s) const {
    return evidence_.candidates[s.candidate];
  }
  const Timing& worst_timing(const BucketScore& s) const { return candidate(s).at[s.worst_probe]; }

  // "dense 12.3 µs, best sparse avx2_spmm 15.1 µs at 1 token (0.81x)"
  std::string beside_dense(const BucketScore& s, std::string_view word) const {
    const Timing& t = worst_timing(s);
    const std::string at = format_tokens(evidence_.probes[s.worst_probe].tokens);
    const std::string_view modelled = evidence_.modelled ? "modelled: " : "";
    if (!evidence_.has_dense) {
      return fmt::format("{}{} {} at {}, no dense peer to compare with", modelled,
                         candidate(s).name, format_seconds(t.seconds), at);
    }
    return fmt::format("{}dense{} {}, {}{} {} at {} ({:.2f}x)", modelled,
                       evidence_.dense_modelled ? " (modelled)" : "",
                       format_seconds(t.dense_seconds), word, candidate(s).name,
                       format_seconds(t.seconds), at, t.ratio);
  }

  static const BucketScore& most_gaining(const LayoutScore& s) {
    return *std::max_element(
        s.buckets.begin(), s.buckets.end(),
        [](const BucketScore& a, const BucketScore& b) { return a.mean < b.mean; });
  }

  static const BucketScore& least_gaining(const LayoutScore& s) {
    return *std::min_element(
        s.buckets.begin(), s.buckets.end(),
        [](const BucketScore& a, const BucketScore& b) { return a.worst < b.worst; });
  }

  std::string with_limit(std::string reason) const {
    return evidence_.limit.empty() ? reason : fmt::format("{}; {}", reason, evidence_.limit);
  }

  std::string sparse_reason(const LayoutScore& s) const {
    const BucketScore& top = most_gaining(s);
    if (!forced_.empty()) {
      return with_limit(fmt::format("sparse: {} is {}; {}", forced_, candidate(top).name,
                                    beside_dense(least_gaining(s), "")));
    }
    if (!evidence_.has_dense) {
      return with_limit(
          fmt::format("sparse in layout {}: {}", layout_name(s.layout), beside_dense(top, "")));
    }
    const BucketScore& low = least_gaining(s);
    std::string reason =
        fmt::format("sparse in layout {}: {}", layout_name(s.layout), beside_dense(top, ""));
    if (low.worst_probe != top.worst_probe) {
      reason += fmt::format("; {}: {}", low.dense ? "dense where it is faster" : "least gain",
                            beside_dense(low, ""));
      if (s.forgiven && !low.dense) {
        reason += fmt::format(", within the {} that a call may cost", format_seconds(kCallSeconds));
      }
    }
    return with_limit(std::move(reason));
  }

  std::string plain_reason(const LayoutScore& s) const {
    const BucketScore& top = most_gaining(s);
    if (!s.slower) {
      return with_limit(fmt::format("plain: no {} count gains 5 % in layout {}; {}", evidence_.unit,
                                    layout_name(s.layout), beside_dense(top, "best sparse ")));
    }
    const BucketScore& low = least_gaining(s);
    std::string reason = fmt::format("plain: {}, layout {}", beside_dense(low, "best sparse "),
                                     layout_name(s.layout));
    if (s.wins) {
      reason +=
          fmt::format("; memory=\"speed\" keeps a dense copy for that and gains elsewhere: {}",
                      beside_dense(top, ""));
    }
    return with_limit(std::move(reason));
  }

  // How far the model is off: measured over predicted seconds where the row was last timed; nothing
  // where it never was.
  std::optional<double> model_error(const Candidate& row) const {
    for (std::size_t p = kProbeCount; p-- > 0;) {
      if (row.at[p].known && row.model[p] > 0.0) return row.at[p].seconds / row.model[p];
    }
    return std::nullopt;
  }

  // The row for a bucket where nothing was timed: the model's best of the layout, its prediction
  // corrected by what it was off by at fewer tokens. Rows that were never timed are off by as much
  // as the row that was chosen there.
  std::size_t extrapolated(const LayoutScore& s, int bucket) const {
    const BucketScore& last = s.buckets.back();
    const std::optional<double> usual = model_error(candidate(last));
    if (!usual) return last.candidate;
    const auto probe =
        static_cast<std::size_t>(std::find_if(evidence_.probes.begin(), evidence_.probes.end(),
                                              [&](const Probe& p) { return p.bucket > bucket; }) -
                                 evidence_.probes.begin() - 1);
    const auto expected = [&](std::size_t c) {
      const Candidate& row = evidence_.candidates[c];
      return row.model[probe] * model_error(row).value_or(*usual);
    };
    std::size_t best = last.candidate;
    for (std::size_t c = 0; c < evidence_.candidates.size(); ++c) {
      const Candidate& row = evidence_.candidates[c];
      if (row.layout != s.layout || row.model[probe] <= 0.0) continue;
      if (expected(c) < expected(best)) best = c;
    }
    return best;
  }

  PlanChoice choice(const LayoutScore& s, int bucket, bool sparse) const {
    const std::size_t last = s.buckets.size() - 1;
    const std::size_t index = std::min(static_cast<std::size_t>(bucket), last);
    const BucketScore& b = s.buckets[index];
    const Timing& t = worst_timing(b);
    const bool dense = !sparse || b.dense;
    PlanChoice c;
    c.kernel = dense ? kDenseKernel : candidate(b).name;
    c.tokens = evidence_.probes[b.worst_probe].tokens;
    c.milliseconds = (dense ? t.dense_seconds : t.seconds) * 1e3;
    c.dense_milliseconds = t.dense_seconds * 1e3;
    c.reason = beside_dense(b, dense ? "best sparse " : "");
    if (static_cast<std::size_t>(bucket) <= last) return c;
    const std::size_t row = dense ? b.candidate : extrapolated(s, bucket);
    c.reason = fmt::format("taken from {}, the most that was timed: {}", format_tokens(c.tokens),
                           c.reason);
    if (row != b.candidate) {
      c.kernel = evidence_.candidates[row].name;
      c.reason += fmt::format("; the model expects {} to be faster with more", c.kernel);
    }
    return c;
  }

  // Only times that could turn the verdict: with a clear win elsewhere, 5 % here no longer matters.
  std::vector<Contested> contested(const LayoutScore& s) const {
    const bool clear_win = std::any_of(s.buckets.begin(), s.buckets.end(), [](const auto& b) {
      return b.worst >= kNotSlowerRatio && b.mean - b.spread >= kWinRatio;
    });
    std::vector<Contested> found;
    for (const BucketScore& b : s.buckets) {
      for (std::size_t p = 0; p < kProbeCount; ++p) {
        if (evidence_.probes[p].bucket != evidence_.probes[b.worst_probe].bucket ||
            !evidence_.probed[p])
          continue;
        const Timing& t = candidate(b).at[p];
        const bool near_slower =
            std::abs(ratio_beyond_call(b.candidate, p) - kNotSlowerRatio) < t.spread;
        const bool near_win = !clear_win && std::abs(t.ratio - kWinRatio) < t.spread;
        if (near_slower || near_win) found.push_back({b.candidate, p});
      }
    }
    return found;
  }

  // A layer is not left dense because one unlucky time barred a layout that may be better than the
  // one that was chosen to tell of.
  void add_contested_layouts(Layout told, std::vector<Contested>& found) const {
    std::vector<Layout> seen{told};
    for (const Candidate& candidate : evidence_.candidates) {
      if (std::find(seen.begin(), seen.end(), candidate.layout) != seen.end()) continue;
      seen.push_back(candidate.layout);
      if (const std::optional<LayoutScore> own = score(candidate.layout)) {
        const std::vector<Contested> more = contested(*own);
        found.insert(found.end(), more.begin(), more.end());
      }
    }
  }

  const Evidence& evidence_;
  MemoryMode memory_;
  const std::string& forced_;
};

}  // namespace

Verdict decide(const Evidence& evidence, MemoryMode memory, const std::string& forced) {
  return Decider(evidence, memory, forced).verdict();
}

Plan plain_plan(const PackedView& weight, std::string reason) {
  Plan result;
  result.layout = weight.layout();
  result.reason = std::move(reason);
  for (std::size_t bucket = 0; bucket < result.choices.size(); ++bucket) {
    result.choices[bucket].kernel = kDenseKernel;
    result.choices[bucket].tokens = largest_probe(static_cast<int>(bucket));
    result.choices[bucket].reason = result.reason;
  }
  return result;
}

}  // namespace gossamer::plan
