// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <random>

#include "plan/conv_plan.h"
#include "plan/memory.h"
#include "plan/series.h"

namespace gossamer::plan {
namespace {

constexpr std::int64_t kMaxInputBytes = std::int64_t{1} << 30;

/// X, Y and bias of a timed call: the same numbers in every process, neither zero nor denormal.
class ConvInputs {
 public:
  explicit ConvInputs(const ConvProblem& problem) : problem_(problem), tile_(kTileElements) {
    std::mt19937 random(kSeed);
    std::normal_distribution<float> normal;
    for (float& value : tile_) value = normal(random);
    if (problem.epilogue.bias) bias_ = elements(problem.weight.out());
    if (problem.weight.dtype() == DType::kInt8) {
      weight_scale_.assign(static_cast<std::size_t>(problem.weight.out()), 0.01f);
    }
  }

  static std::int64_t bytes(const Conv2dShape& s) {
    return 4 * (s.images * s.in_channels * s.height * s.width + s.pixels() * s.out_channels);
  }

  /// Valid until the next call with a larger shape.
  Conv2dArgs args(const PackedView& weight, const Conv2dShape& s) {
    const std::int64_t x_count = s.images * s.in_channels * s.height * s.width;
    const std::int64_t y_count = s.pixels() * s.out_channels;
    if (std::ssize(x_) < x_count) x_ = elements(x_count);
    if (std::ssize(y_) < y_count) y_ = elements(y_count);
    if (problem_.epilogue.residual && std::ssize(residual_) < y_count)
      residual_ = elements(y_count);
    const auto strides = problem_.layer.channels_last ? ImageStrides::nhwc : ImageStrides::planar;
    Conv2dArgs args{.weight = weight, .shape = s};
    args.x = x_.data();
    args.x_strides = strides(s.in_channels, s.height, s.width);
    args.y = y_.data();
    args.y_strides = strides(s.out_channels, s.out_height(), s.out_width());
    args.bias = bias_.empty() ? nullptr : bias_.data();
    args.residual = residual_.empty() ? nullptr : residual_.data();
    args.activation = problem_.epilogue.activation;
    args.parallel = problem_.options.parallel;
    if (weight_scale_.empty()) return args;
    x_scale_.resize(std::max(x_scale_.size(), static_cast<std::size_t>(s.images)));
    args.weight_scale = weight_scale_.data();
    args.x_scale = x_scale_.data();
    return args;
  }

  /// What a call does before a row runs: the scales of a quantized one.
  void prepare(const Conv2dArgs& args) {
    if (args.x_scale != nullptr) image_scales(args, x_scale_.data());
  }

 private:
  static constexpr std::size_t kTileElements = 16381;
  static constexpr std::uint32_t kSeed = 20261123;

  std::vector<float> elements(std::int64_t count) const {
    std::vector<float> all(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = tile_[i % kTileElements];
    return all;
  }

  const ConvProblem& problem_;
  std::vector<float> tile_, x_, y_, bias_, residual_, weight_scale_, x_scale_;
};

class ConvMeasurer {
 public:
  ConvMeasurer(const std::vector<const Conv2dKernel*>& rows, const ConvProblem& problem)
      : problem_(problem), clock_(problem.options.seconds_budget), inputs_(problem) {
    // As many layouts as fit beside the layer, at least one.
    std::int64_t room = trial_bytes(problem.weight, problem.weight.dtype() == DType::kInt8);
    const LayoutSizes sizes(problem.weight);
    for (const Conv2dKernel* row : rows) {
      if (row->layout != problem.weight.layout() && !weights_.contains(row->layout)) {
        if (!rows_.empty() && layout_bytes(problem.weight, row->layout) > room) continue;
        const PackedWeight& made =
            weights_.emplace(row->layout, convert(problem.weight, row->layout)).first->second;
        room -= made.view().size_bytes();
      }
      views_.emplace(row->layout, row->layout == problem.weight.layout()
                                      ? problem.weight
                                      : weights_.at(row->layout).view());
      rows_.push_back(row);
      evidence_.candidates.push_back(
          {.name = row->name,
           .layout = row->layout,
           .small = sizes.is_small(views_.at(row->layout).layout_bytes()),
           .bytes = views_.at(row->layout).layout_bytes(),
           .at = {},
           .model = {}});
    }
    series_.resize(rows_.size());
    evidence_.unit = "pixel";
    evidence_.has_dense = static_cast<bool>(problem.dense.run);
    evidence_.last_aside = last_aside(problem.weight);
    evidence_.probes = conv_probes(problem.weight, problem.layer);
  }

  Verdict verdict(const std::string& forced) {
    const MemoryMode memory = problem_.options.memory;
    for (std::size_t p = 0; p < kConvProbes.size() && measure_probe(p); ++p) {
    }
    Verdict verdict = decide(evidence_, memory, forced);
    for (int pass = 0; pass < kMaxPasses && !verdict.contested.empty(); ++pass) {
      if (clock_.left() < 0.0) break;
      measure_again(verdict.contested);
      verdict = decide(evidence_, memory, forced);
    }
    while (!verdict.contested.empty()) {  // ends: a time judged by its minimum is in no doubt
      for (const Contested& c : verdict.contested) {
        evidence_.candidates[c.candidate].at[c.probe] = series_[c.candidate][c.probe].least();
      }
      verdict = decide(evidence_, memory, forced);
    }
    verdict.disturbed = clock_.disturbed();
    return verdict;
  }

 private:
  struct Contender {
    std::size_t row = 0;
    Conv2dArgs args;
    double seconds = 0.0;  ///< of one call, roughly
  };

  double budget() const { return problem_.options.seconds_budget; }
  double left() const { return clock_.left(kFirstPass); }
  Conv2dShape shape(std::size_t p) const {
    return probe_shape(problem_.weight, problem_.layer, kConvProbes[p]);
  }

  // Times grow no faster than pixels do: an upper bound of a call at probe p from the one before.
  double growth(std::size_t p) const {
    return static_cast<double>(evidence_.probes[p].tokens) /
           static_cast<double>(evidence_.probes[p - 1].tokens);
  }

  // What a call will take at most, from the one at the probe before; 0 where there is none.
  double expected(double before, std::size_t p) const { return p == 0 ? 0.0 : before * growth(p); }

  // Why probe p is not measured; empty where it is.
  std::string too_long(std::size_t p) const {
    const std::int64_t pixels = evidence_.probes[p].tokens;
    if (ConvInputs::bytes(shape(p)) > kMaxInputBytes) {
      return fmt::format("{} pixels and more were not timed: X and Y would take {} MB", pixels,
                         ConvInputs::bytes(shape(p)) >> 20);
    }
    if (p == 0) return {};
    const double dense = dense_seconds_ * growth(p);
    const double sparse = least_seconds_ * growth(p);
    if (dense > kDenseShare * budget() || (dense + sparse) * (kMinRounds + 1) > left()) {
      return fmt::format(
          "{} pixels and more were not timed: one round takes about {:.1f} ms, and the budget of "
          "{:.0f} ms has {:.0f} ms left",
          pixels, 1e3 * (dense + sparse), 1e3 * budget(), 1e3 * std::max(left(), 0.0));
    }
    return {};
  }

  bool measure_probe(std::size_t p) {
    evidence_.limit = too_long(p);
    if (!evidence_.limit.empty() && p > 0) return false;
    // Later maps have more pixels and get more.
    const auto shares = static_cast<double>(std::max<std::size_t>(kConvProbes.size() - p, 3));
    const double allowed = std::max(left(), 0.0) / shares;
    const double end = clock_.spent() + allowed;
    const double wall_end = clock_.wall() + allowed;  // rounds beyond the least are charged in full
    dense_seconds_ =
        warmed_seconds(clock_, expected(dense_seconds_, p), [&] { return sample_dense(p, 1); });
    std::vector<Contender> contenders = warm_up(p);
    double round = dense_seconds_;
    for (const Contender& c : contenders) round += c.seconds;
    const double rest = end - clock_.spent();
    while (contenders.size() > 1 && round * kShortMinRounds > rest) {
      round -= contenders.back().seconds;
      contenders.pop_back();
    }
    const int least = round < 1e-3 ? kShortMinRounds : kMinRounds;
    for (const Contender& c : contenders) series_[c.row][p] = {};
    for (int i = 0; i < kMaxRounds && (i < least || clock_.wall() < wall_end); ++i) {
      run_round(p, contenders, i);
    }
    for (const Contender& c : contenders) note(c.row, p);
    evidence_.probed[p] = true;
    return true;
  }

  // Every row once or twice. Those near the best go on, fastest first; the others keep the time of
  // their warm-up.
  std::vector<Contender> warm_up(std::size_t p) {
    std::vector<Contender> all;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const Conv2dArgs args = inputs_.args(views_.at(rows_[r]->layout), shape(p));
      const double before = p == 0 ? 0.0 : evidence_.candidates[r].at[p - 1].seconds;
      const double seconds =
          warmed_seconds(clock_, expected(before, p), [&] { return run_row(r, args, 1); });
      series_[r][p].sparse = {seconds + problem_.options.call_overhead};
      if (evidence_.has_dense) series_[r][p].dense = {dense_seconds_};
      note(r, p);
      all.push_back({r, args, seconds});
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Contender& a, const Contender& b) { return a.seconds < b.seconds; });
    least_seconds_ = all.front().seconds;
    std::erase_if(all, [&](const Contender& c) { return c.seconds > kHopeless * least_seconds_; });
    return all;
  }

  double run_row(std::size_t row, const Conv2dArgs& args, int calls) {
    const Stopwatch watch;
    for (int i = 0; i < calls; ++i) {
      inputs_.prepare(args);
      rows_[row]->run(args);
    }
    return watch.seconds() / calls;
  }

  double sample_dense(std::size_t p, int calls) const {
    if (!problem_.dense.run) return 0.0;
    const Conv2dShape s = shape(p);
    const Stopwatch watch;
    for (int i = 0; i < calls; ++i) problem_.dense.run(s);
    return watch.seconds() / calls;
  }

  double warm_dense(std::size_t p) {
    if (dense_seconds_ < kWarmedSeconds) clock_.note(sample_dense(p, 1), dense_seconds_);
    const int calls = calls_per_sample(dense_seconds_);
    const double seconds = sample_dense(p, calls);
    clock_.note(seconds, dense_seconds_, calls);
    return seconds;
  }

  // One sample of dense and of every contender, in an order that alternates.
  void run_round(std::size_t p, const std::vector<Contender>& contenders, int round) {
    const bool forwards = round % 2 == 0;
    const double first_dense = forwards ? warm_dense(p) : 0.0;
    std::vector<double> sparse(contenders.size());
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const std::size_t at = forwards ? i : contenders.size() - 1 - i;
      const Contender& c = contenders[at];
      if (c.seconds < kWarmedSeconds) clock_.note(run_row(c.row, c.args, 1), c.seconds);
      const int calls = calls_per_sample(c.seconds);
      const double seconds = run_row(c.row, c.args, calls);
      clock_.note(seconds, c.seconds, calls);
      sparse[at] = seconds + problem_.options.call_overhead;
    }
    const double dense = forwards ? first_dense : warm_dense(p);
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      Series& series = series_[contenders[i].row][p];
      series.sparse.push_back(sparse[i]);
      if (evidence_.has_dense) series.dense.push_back(dense);
    }
  }

  void note(std::size_t row, std::size_t p) {
    evidence_.candidates[row].at[p] = series_[row][p].timing();
  }

  // Twice the rounds so far for each contested time, as far as the budget goes.
  void measure_again(const std::vector<Contested>& contested) {
    const double share = std::max(clock_.left(), 0.0) / static_cast<double>(contested.size());
    for (const Contested& place : contested) {
      const Timing before = series_[place.candidate][place.probe].least();
      dense_seconds_ = before.dense_seconds;
      const std::vector<Contender> one{
          {place.candidate,
           inputs_.args(views_.at(rows_[place.candidate]->layout), shape(place.probe)),
           before.seconds}};
      const auto rounds = 2 * static_cast<int>(series_[place.candidate][place.probe].sparse.size());
      const double end = clock_.spent() + share - before.seconds - before.dense_seconds;
      for (int i = 0; i < rounds && clock_.spent() < end; ++i) {
        run_round(place.probe, one, i);
      }
      note(place.candidate, place.probe);
    }
  }

  const ConvProblem& problem_;
  Budget clock_;
  ConvInputs inputs_;
  std::vector<const Conv2dKernel*> rows_;
  std::vector<std::array<Series, kProbeCount>> series_;  ///< of each row
  std::map<Layout, PackedWeight> weights_;
  std::map<Layout, PackedView> views_;
  double dense_seconds_ = 0.0;  ///< of one call at the present probe
  double least_seconds_ = 0.0;  ///< of the fastest row there
  Evidence evidence_;
};

}  // namespace

Verdict measure_conv2d(const std::vector<const Conv2dKernel*>& rows, const ConvProblem& problem,
                       const std::string& forced) {
  return ConvMeasurer(rows, problem).verdict(forced);
}

}  // namespace gossamer::plan
