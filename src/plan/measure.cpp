// SPDX-License-Identifier: BSD-3-Clause
#include "plan/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "gossamer/error.h"
#include "plan/call_inputs.h"
#include "plan/candidates.h"
#include "plan/dense_model.h"
#include "plan/late_look.h"
#include "plan/memory.h"
#include "plan/series.h"
#include "plan/trial_layouts.h"

namespace gossamer::plan {
namespace {

class Measurer {
 public:
  Measurer(const std::vector<ModelledRow>& rows, const PackedView& weight, const LinearDesc& desc,
           const Machine& machine, const DensePeer& dense, const PlanOptions& options)
      : desc_(desc),
        machine_(machine),
        dense_(dense),
        options_(options),
        budget_(options.seconds_budget),
        inputs_(desc, options.parallel),
        entrants_(promising(rows)),
        sizes_(weight),
        layer_bytes_(dense_bytes(weight, desc.epilogue.quantized)),
        layouts_(weight, trial_bytes(weight, desc.epilogue.quantized)) {
    choose_layouts(weight);
    series_.resize(entrants_.size());
    evidence_.has_dense = dense.run || dense.seconds;
    evidence_.dense_modelled = !dense.run;
    for (const Entrant& entrant : entrants_) {
      const LinearKernel& row = *entrant.model.row;
      evidence_.candidates.push_back(
          {.name = row.name, .layout = row.layout, .at = {}, .model = entrant.model.seconds});
    }
  }

  Verdict verdict(const std::string& forced) {
    for (group_ = 0; group_ < layouts_.groups(); ++group_) measure_group();
    Verdict verdict = decide(evidence_, options_.memory, forced);
    for (int pass = 0; pass < kMaxPasses && !verdict.contested.empty(); ++pass) {
      if (left_for_doubts() <= 0.0) break;
      measure_again(verdict.contested);
      verdict = decide(evidence_, options_.memory, forced);
    }
    while (!verdict.contested.empty()) {  // ends: a time judged by its minimum is in no doubt
      for (const Contested& c : verdict.contested) {
        evidence_.candidates[c.candidate].at[c.probe] = series_[c.candidate][c.probe].least();
      }
      verdict = decide(evidence_, options_.memory, forced);
    }
    if (forced.empty() && verdict.plan.sparse && dense_.run && look_again(verdict.plan)) {
      verdict = decide(evidence_, options_.memory, forced);
    }
    verdict.disturbed = budget_.disturbed();
    return verdict;
  }

 private:
  struct Contender {
    std::size_t entrant = 0;
    LinearArgs args;
    int calls = 1;
    double seconds = 0.0;  ///< of one call, roughly
  };

  // Further layouts than the first are only tried while half of the budget is left and their copies
  // fit beside the layer; rows of a layout that the weight cannot take (its pattern does not fit)
  // drop out.
  void choose_layouts(const PackedView& weight) {
    std::vector<Entrant> kept;
    for (const Entrant& entrant : entrants_) {
      const Layout layout = entrant.model.row->layout;
      const bool is_known = std::any_of(kept.begin(), kept.end(), [&](const Entrant& other) {
        return other.model.row->layout == layout;
      });
      const bool is_late =
          !kept.empty() && !is_known && layout != weight.layout() && budget_.left(0.5) < 0.0;
      if (!is_late && layouts_.add(layout)) kept.push_back(entrant);
    }
    if (kept.empty()) {
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("a {} x {} weight in layout {} cannot be converted to any layout that "
                      "a kernel computes",
                      desc_.out, desc_.in, layout_name(weight.layout())));
    }
    entrants_ = std::move(kept);
  }

  // Layouts that are held together, at all token counts that the first of them were timed at: rows
  // are compared by their least times, whichever group they are of, and each with dense beside it.
  void measure_group() {
    racing_.clear();
    for (std::size_t e = 0; e < entrants_.size(); ++e) {
      Candidate& candidate = evidence_.candidates[e];
      if (layouts_.group(candidate.layout) != group_) continue;
      try {
        candidate.bytes = layouts_.view(candidate.layout).layout_bytes();
        candidate.small = sizes_.is_small(candidate.bytes);
        racing_.insert(candidate.layout);
      } catch (const Error&) {
        continue;  // of another pattern: without a time it cannot be chosen
      }
    }
    for (std::size_t p = 0; p < kProbeCount && !racing_.empty(); ++p) {
      if (group_ > 0 && !evidence_.probed[p]) break;
      if (!measure_probe(p)) break;
    }
  }

  // Of the first pass, each group has the same share.
  double left() const {
    const auto groups = static_cast<double>(layouts_.groups());
    return budget_.left(kFirstPass * static_cast<double>(group_ + 1) / groups);
  }

  double run_dense(std::int64_t tokens) const {
    if (!dense_.run) return dense_.seconds ? dense_.seconds(tokens) : 0.0;
    const Stopwatch watch;
    dense_.run(tokens);
    return watch.seconds();
  }

  double run_row(const LinearKernel& row, const LinearArgs& args, int calls) {
    const Stopwatch watch;
    for (int i = 0; i < calls; ++i) {
      if (desc_.epilogue.quantized) inputs_.quantize(args.tokens);
      row.run(args);
    }
    return watch.seconds() / calls;
  }

  // What a call will take at probe p, from the one before and the growth that the model predicts.
  double expected_dense(std::size_t p) const {
    if (!dense_.run) return 0.0;
    const auto model = [&](std::size_t probe) {
      return modelled_dense_seconds(desc_, machine_, kProbes[probe].tokens,
                                    options_.parallel.threads);
    };
    return p == 0 ? model(p) : dense_seconds_[p - 1] * model(p) / model(p - 1);
  }

  double expected_row(std::size_t entrant, std::size_t p) const {
    const auto& model = entrants_[entrant].model.seconds;
    if (p == 0) return model[p];
    const Timing& before = evidence_.candidates[entrant].at[p - 1];
    return before.known ? before.seconds * model[p] / model[p - 1] : model[p];
  }

  // A layout needs a row in every bucket, timed at all of the bucket's token counts, so layouts and
  // rows that were left out before stay out. At least one row is always in.
  bool entered(std::size_t entrant, std::size_t p) const {
    if (!entrants_[entrant].in_bucket[static_cast<std::size_t>(kProbes[p].bucket)]) return false;
    if (!racing_.contains(entrants_[entrant].model.row->layout)) return false;
    const bool first_of_bucket = p == 0 || kProbes[p - 1].bucket != kProbes[p].bucket;
    return first_of_bucket || evidence_.candidates[entrant].at[p - 1].known;
  }

  std::vector<std::size_t> fastest_first(std::size_t p) const {
    std::vector<std::size_t> order;
    for (std::size_t e = 0; e < entrants_.size(); ++e) {
      if (entered(e, p)) order.push_back(e);
    }
    if (p == 0) return order;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return expected_row(a, p) < expected_row(b, p);
    });
    return order;
  }

  // Why probe p is not measured; empty where it is.
  std::string too_long(std::size_t p) const {
    const std::int64_t tokens = kProbes[p].tokens;
    if (inputs_.bytes(tokens) > input_bytes(layer_bytes_)) {
      return fmt::format("{} tokens and more were not timed: inputs and result would take {} MB",
                         tokens, inputs_.bytes(tokens) >> 20);
    }
    if (p == 0) return {};
    const double sparse = expected_row(fastest_first(p).front(), p);
    const double dense = expected_dense(p);
    const double budget = options_.seconds_budget;
    if (dense > kDenseShare * budget) {
      return fmt::format(
          "{} tokens and more were not timed: one dense call takes about {:.0f} ms, the budget is "
          "{:.0f} ms",
          tokens, 1e3 * dense, 1e3 * budget);
    }
    if ((dense + sparse) * (kMinRounds + 1) > left()) {
      return fmt::format(
          "{} tokens and more were not timed: one round takes about {:.1f} ms, and "
          "the budget of {:.0f} ms has {:.0f} ms left",
          tokens, 1e3 * (dense + sparse), 1e3 * budget, 1e3 * std::max(left(), 0.0));
    }
    return {};
  }

  double quota(std::size_t p) const { return std::max(left(), 0.0) * share_of_rest(p); }

  double round_seconds(std::size_t p, const std::vector<Contender>& contenders) const {
    const auto with_warming = [](double once) {
      return std::max(once, kSampleSeconds) + (once < kWarmedSeconds ? once : 0.0);
    };
    double sum = dense_.run ? with_warming(dense_seconds_[p]) : 0.0;
    for (const Contender& c : contenders) sum += with_warming(c.seconds);
    return sum;
  }

  bool measure_probe(std::size_t p) {
    const std::string limit = too_long(p);
    if (group_ == 0) evidence_.limit = limit;
    if (!limit.empty() && p > 0) return false;
    const std::int64_t tokens = kProbes[p].tokens;
    const double allowed = quota(p);
    const double end = budget_.spent() + allowed;
    const double wall_end =
        budget_.wall() + allowed;  // rounds beyond the least are charged in full

    dense_seconds_[p] =
        dense_.run ? warmed_seconds(budget_, expected_dense(p), [&] { return run_dense(tokens); })
                   : run_dense(tokens);
    std::vector<Contender> contenders = warm_up(p, end, allowed);
    // The slowest wait outside until enough rounds of the others fit.
    const double rest = end - budget_.spent();
    while (contenders.size() > 1 && round_seconds(p, contenders) * kShortMinRounds > rest) {
      contenders.pop_back();
    }
    const double round = round_seconds(p, contenders);
    int least = round < 1e-3 ? kShortMinRounds : kMinRounds;
    if (round * least > std::max(left(), kDenseShare * options_.seconds_budget)) least = 1;
    for (const Contender& c : contenders) series_[c.entrant][p] = {};
    for (int i = 0; i < kMaxRounds && (i < least || budget_.wall() < wall_end); ++i) {
      run_round(p, contenders, i);
    }
    for (const Contender& c : contenders) note(c.entrant, p);
    evidence_.probed[p] = true;
    return true;
  }

  // Calls each row once or twice, the most promising first, in at most half of the probe's time.
  // Those near their layout's best go on, fastest first; the others keep the time of their warm-up.
  std::vector<Contender> warm_up(std::size_t p, double end, double allowed) {
    std::vector<Contender> all;
    std::map<Layout, double> best;
    for (const std::size_t e : fastest_first(p)) {
      const LinearKernel& row = *entrants_[e].model.row;
      // A layout stays in the race only with a time at every probe, so each gets one.
      if (const auto timed = best.find(row.layout); timed != best.end()) {
        // What was timed may have been slower than expected: then the next may well be faster.
        const double expected = expected_row(e, p);
        if (budget_.spent() > end - 0.5 * allowed && expected > timed->second) continue;
        if (p > 0 && expected * kMinRounds > left()) continue;
      }
      const LinearArgs args = inputs_.args(layouts_.view(row.layout), kProbes[p].tokens);
      const double seconds =
          warmed_seconds(budget_, expected_row(e, p), [&] { return run_row(row, args, 1); });
      Series& series = series_[e][p];
      series.sparse = {seconds + options_.call_overhead};
      if (evidence_.has_dense) series.dense = {dense_seconds_[p]};
      note(e, p);
      all.push_back({e, args, calls_per_sample(seconds), seconds});
      const auto at = best.try_emplace(row.layout, seconds).first;
      at->second = std::min(at->second, seconds);
    }
    std::erase_if(racing_, [&](Layout layout) { return !best.contains(layout); });
    std::erase_if(all, [&](const Contender& c) {
      return c.seconds > kHopeless * best.at(entrants_[c.entrant].model.row->layout);
    });
    std::stable_sort(all.begin(), all.end(),
                     [](const Contender& a, const Contender& b) { return a.seconds < b.seconds; });
    return all;
  }

  // One sample of dense and of every contender; the order alternates, so that none always follows
  // the same neighbour.
  void run_round(std::size_t p, const std::vector<Contender>& contenders, int round) {
    const bool forwards = round % 2 == 0;
    const double first_dense = forwards ? sample_dense(p) : 0.0;
    std::vector<double> sparse(contenders.size());
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const std::size_t at = forwards ? i : contenders.size() - 1 - i;
      const Contender& c = contenders[at];
      const LinearKernel& row = *entrants_[c.entrant].model.row;
      if (c.seconds < kWarmedSeconds) budget_.note(run_row(row, c.args, 1), c.seconds);
      const double seconds = run_row(row, c.args, c.calls);
      budget_.note(seconds, c.seconds, c.calls);
      sparse[at] = seconds + options_.call_overhead;
    }
    const double dense = forwards ? first_dense : sample_dense(p);
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      Series& series = series_[contenders[i].entrant][p];
      series.sparse.push_back(sparse[i]);
      if (evidence_.has_dense) series.dense.push_back(dense);
    }
  }

  double sample_dense(std::size_t p) {
    const std::int64_t tokens = kProbes[p].tokens;
    if (!dense_.run) return run_dense(tokens);
    const double once = dense_seconds_[p];
    if (once < kWarmedSeconds) budget_.note(run_dense(tokens), once);
    const int calls = calls_per_sample(once);
    const Stopwatch watch;
    for (int i = 0; i < calls; ++i) dense_.run(tokens);
    const double seconds = watch.seconds() / calls;
    budget_.note(seconds, once, calls);
    return seconds;
  }

  void note(std::size_t entrant, std::size_t p) {
    evidence_.candidates[entrant].at[p] = series_[entrant][p].timing();
  }

  // Large token counts use the budget up, and doubts are mostly about a few microseconds at one
  // token: a little more is spent on them.
  double left_for_doubts() const {
    constexpr double kReserve = 0.05;
    return budget_.left() + kReserve * options_.seconds_budget;
  }

  // Twice the rounds so far for each contested time, as far as the budget goes.
  void measure_again(std::vector<Contested> contested) {
    const auto group = [&](const Contested& place) {
      return layouts_.group(entrants_[place.candidate].model.row->layout);
    };
    std::stable_sort(contested.begin(), contested.end(),
                     [&](const Contested& a, const Contested& b) { return group(a) < group(b); });
    const double share = left_for_doubts() / static_cast<double>(contested.size());
    for (const Contested& place : contested) {
      const Timing before = series_[place.candidate][place.probe].least();
      const std::vector<Contender> one{contender(place, before.seconds)};
      const auto rounds = 2 * static_cast<int>(series_[place.candidate][place.probe].sparse.size());
      const double end = budget_.spent() + share - before.seconds - before.dense_seconds;
      for (int i = 0; i < rounds && budget_.spent() < end; ++i) {
        run_round(place.probe, one, i);
      }
      note(place.candidate, place.probe);
    }
  }

  bool look_again(const Plan& plan) {
    bool changed = false;
    for (const Contested& place : choices_of(evidence_, plan)) {
      const Timing first = evidence_.candidates[place.candidate].at[place.probe];
      if (left_for_doubts() < 2 * kMinRounds * (first.seconds + first.dense_seconds)) continue;
      Series& series = series_[place.candidate][place.probe];
      Series before = std::exchange(series, {});
      const Contender one = contender(place, first.seconds);
      for (int i = 0; i < kMinRounds; ++i) run_round(place.probe, {one}, i);
      changed |= judge_late(evidence_, place, series.least());
      series = std::move(before);
    }
    return changed;
  }

  Contender contender(const Contested& place, double seconds) {
    const LinearKernel& row = *entrants_[place.candidate].model.row;
    return {place.candidate, inputs_.args(layouts_.view(row.layout), kProbes[place.probe].tokens),
            calls_per_sample(seconds), seconds};
  }

  const LinearDesc& desc_;
  const Machine& machine_;
  const DensePeer& dense_;
  const PlanOptions& options_;
  Budget budget_;
  CallInputs inputs_;
  std::vector<Entrant> entrants_;
  std::vector<std::array<Series, kProbeCount>> series_;  ///< of each entrant
  LayoutSizes sizes_;
  std::int64_t layer_bytes_;
  TrialLayouts layouts_;
  std::size_t group_ = 0;
  std::array<double, kProbeCount> dense_seconds_{};
  std::set<Layout> racing_;  ///< of the group, those with a row at every token count so far
  Evidence evidence_;
};

}  // namespace

Verdict measure_rows(const std::vector<ModelledRow>& rows, const PackedView& weight,
                     const LinearDesc& desc, const Machine& machine, const DensePeer& dense,
                     const PlanOptions& options, const std::string& forced) {
  return Measurer(rows, weight, desc, machine, dense, options).verdict(forced);
}

}  // namespace gossamer::plan
