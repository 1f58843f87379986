// SPDX-License-Identifier: BSD-3-Clause
#include "plan/decide.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "plan/score.h"

namespace gossamer::plan {
namespace {

std::string format_seconds(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} µs", seconds * 1e6);
  return fmt::format("{:.2f} ms", seconds * 1e3);
}

class Decider {
 public:
  Decider(const Evidence& evidence, MemoryMode memory, const std::string& forced)
      : evidence_(evidence), forced_(forced), scorer_(evidence, memory, !forced.empty()) {}

  Verdict verdict() const {
    const LayoutScore single = scorer_.best_single();
    const std::optional<LayoutScore> pair = scorer_.best_pair(single);
    const LayoutScore& best = pair && scorer_.pays(*pair, single) ? *pair : single;
    Verdict result;
    result.plan.layout = best.layout;
    result.plan.second = best.second;
    result.plan.sparse =
        !forced_.empty() || !evidence_.has_dense || (scorer_.admissible(best) && best.wins);
    result.plan.reason = result.plan.sparse ? sparse_reason(best) : plain_reason(best);
    if (!result.plan.sparse) {
      result.plan.second.reset();
    } else if (best.second) {
      result.plan.reason += why_two(best, single);
    }
    for (int bucket = 0; bucket < kTokenBuckets; ++bucket) {
      result.plan.choices[static_cast<std::size_t>(bucket)] =
          choice(best, bucket, result.plan.sparse);
    }
    if (evidence_.has_dense && forced_.empty()) {
      result.contested = contested(best);
      if (pair) add_contested_second(*pair, single, result.contested);
      if (best.second) {  // nor is a second one kept because of a single unlucky time
        const std::vector<Contested> more = contested(single);
        result.contested.insert(result.contested.end(), more.begin(), more.end());
      }
      if (!result.plan.sparse) add_contested_layouts(best.layout, result.contested);
    }
    return result;
  }

 private:
  std::string format_tokens(std::int64_t tokens) const {
    return fmt::format("{} {}{}", tokens, evidence_.unit, tokens == 1 ? "" : "s");
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

  /// The first bucket that counts.
  static std::vector<BucketScore>::const_iterator counted(const LayoutScore& s) {
    return std::find_if(s.buckets.begin(), s.buckets.end(), [](const auto& b) { return !b.aside; });
  }

  static const BucketScore& most_gaining(const LayoutScore& s) {
    return *std::max_element(
        counted(s), s.buckets.end(),
        [](const BucketScore& a, const BucketScore& b) { return a.mean < b.mean; });
  }

  static const BucketScore& least_gaining(const LayoutScore& s) {
    return *std::min_element(
        counted(s), s.buckets.end(),
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
      return with_limit(fmt::format("sparse in {}: {}", layouts_text(s), beside_dense(top, "")));
    }
    const BucketScore& low = least_gaining(s);
    std::string reason = fmt::format("sparse in {}: {}", layouts_text(s), beside_dense(top, ""));
    if (low.worst_probe != top.worst_probe) {
      reason += fmt::format("; {}: {}", low.dense ? "dense where it is faster" : "least gain",
                            beside_dense(low, ""));
      if (s.forgiven && !low.dense) {
        reason += fmt::format(", within the {} that a call may cost", format_seconds(kCallSeconds));
      }
    }
    const auto aside = std::find_if(s.buckets.begin(), counted(s), [](const BucketScore& b) {
      return b.worst < kNotSlowerRatio && !b.dense;
    });
    if (aside != counted(s)) reason += fmt::format("; not counted: {}", beside_dense(*aside, ""));
    return with_limit(std::move(reason));
  }

  static std::string layouts_text(const LayoutScore& s) {
    if (!s.second) return fmt::format("layout {}", layout_name(s.layout));
    return fmt::format("layouts {} and {}", layout_name(s.layout), layout_name(*s.second));
  }

  // Why one layout is not enough: where the best single one falls behind most.
  std::string why_two(const LayoutScore& pair, const LayoutScore& single) const {
    const std::size_t bucket = scorer_.most_gaining_bucket(pair, single);
    const BucketScore& with = pair.buckets[bucket];
    const BucketScore& without = single.buckets[bucket];
    const auto times_as_long = [&](std::size_t p) {
      return candidate(without).at[p].seconds / candidate(with).at[p].seconds;
    };
    std::size_t most = with.worst_probe;
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      const bool timed =
          evidence_.probes[p].bucket == evidence_.probes[most].bucket && evidence_.probed[p];
      if (timed && times_as_long(p) > times_as_long(most)) most = p;
    }
    const Timing& t = candidate(with).at[most];
    const Timing& alone = candidate(without).at[most];
    return fmt::format("; two layouts, because with {} alone {} takes {} at {}, {} {}",
                       layout_name(single.layout), candidate(without).name,
                       format_seconds(alone.seconds), format_tokens(evidence_.probes[most].tokens),
                       candidate(with).name, format_seconds(t.seconds));
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
      const bool held = row.layout == s.layout || row.layout == s.second;
      if (!held || row.model[probe] <= 0.0) continue;
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
    const bool clear_win = std::any_of(counted(s), s.buckets.end(), [](const auto& b) {
      return b.worst >= kNotSlowerRatio && b.mean - b.spread >= kWinRatio;
    });
    std::vector<Contested> found;
    for (const BucketScore& b : s.buckets) {
      if (b.aside) continue;
      for (std::size_t p = 0; p < kProbeCount; ++p) {
        if (evidence_.probes[p].bucket != evidence_.probes[b.worst_probe].bucket ||
            !evidence_.probed[p])
          continue;
        const Timing& t = candidate(b).at[p];
        const bool near_slower = std::abs(scorer_.ratio_with(-kCallSeconds, b.candidate, p) -
                                          kNotSlowerRatio) < t.spread;
        const bool near_win = !clear_win && std::abs(t.ratio - kWinRatio) < t.spread;
        if (near_slower || near_win) found.push_back({b.candidate, p});
      }
    }
    return found;
  }

  // Whether the second layout gains enough, where only one bucket could say so and is in doubt.
  void add_contested_second(const LayoutScore& pair, const LayoutScore& single,
                            std::vector<Contested>& found) const {
    const std::size_t bucket = scorer_.most_gaining_bucket(pair, single);
    const BucketScore& with = pair.buckets[bucket];
    const BucketScore& without = single.buckets[bucket];
    if (with.candidate == without.candidate || with.dense || without.dense) return;
    const double spread = with.spread / with.mean + without.spread / without.mean;
    const double off = Scorer::gain(pair, single, bucket) / kSecondRatio - 1.0;
    if (std::abs(off) >= spread) return;
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      if (evidence_.probes[p].bucket != evidence_.probes[with.worst_probe].bucket ||
          !evidence_.probed[p])
        continue;
      for (const std::size_t c : {with.candidate, without.candidate}) found.push_back({c, p});
    }
  }

  // A layer is not left dense because one unlucky time barred a layout that may be better than the
  // one that was chosen to tell of.
  void add_contested_layouts(Layout told, std::vector<Contested>& found) const {
    std::vector<Layout> seen{told};
    for (const Candidate& candidate : evidence_.candidates) {
      if (std::find(seen.begin(), seen.end(), candidate.layout) != seen.end()) continue;
      seen.push_back(candidate.layout);
      if (const std::optional<LayoutScore> own = scorer_.score(candidate.layout)) {
        const std::vector<Contested> more = contested(*own);
        found.insert(found.end(), more.begin(), more.end());
      }
    }
  }

  const Evidence& evidence_;
  const std::string& forced_;
  Scorer scorer_;
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

Plan for_weight(const PackedView& weight, Plan plan) {
  if (!plan.sparse) plan.layout = weight.layout();
  if (plan.second == format_for(weight.pattern())) std::swap(plan.layout, *plan.second);
  return plan;
}

}  // namespace gossamer::plan
