// SPDX-License-Identifier: BSD-3-Clause
#include "plan/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "plan/dense_model.h"
#include "plan/memory.h"

namespace gossamer::plan {
namespace {

constexpr double kPromising = 2.0;  // times the cost model's best

// The best of each layout at a probe, and of all.
struct ModelBest {
  std::map<Layout, std::array<double, kProbeCount>> of_layout;
  std::array<double, kProbeCount> of_all;

  explicit ModelBest(const std::vector<ModelledRow>& rows) {
    constexpr double kNever = std::numeric_limits<double>::infinity();
    of_all.fill(kNever);
    for (const ModelledRow& row : rows) {
      auto& own = of_layout.try_emplace(row.row->layout).first->second;
      for (std::size_t p = 0; p < kProbeCount; ++p) {
        own[p] = own[p] == 0.0 ? row.seconds[p] : std::min(own[p], row.seconds[p]);
        of_all[p] = std::min(of_all[p], row.seconds[p]);
      }
    }
  }

  // How far a layout is from the best, as a geometric mean over the probes.
  double distance(Layout layout) const {
    double sum = 0.0;
    double weights = 0.0;
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      const double weight = bucket_weight(kProbes[p].bucket);
      sum += weight * std::log(of_layout.at(layout)[p] / of_all[p]);
      weights += weight;
    }
    return std::exp(sum / weights);
  }

  // Whether a layout is the best somewhere: beside another that serves the rest it may be worth its
  // bytes, however far from the best it is elsewhere.
  bool leads(Layout layout) const {
    const auto& own = of_layout.at(layout);
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      if (own[p] <= of_all[p]) return true;
    }
    return false;
  }
};

}  // namespace

std::vector<Entrant> promising(const std::vector<ModelledRow>& rows) {
  const ModelBest best(rows);
  std::vector<Entrant> entrants;
  for (const ModelledRow& row : rows) {
    const Layout layout = row.row->layout;
    if (best.distance(layout) > kPromising && !best.leads(layout)) continue;
    Entrant entrant{.model = row, .in_bucket = {}};
    bool any = false;
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      if (row.seconds[p] > kPromising * best.of_all[p] &&
          row.seconds[p] > best.of_layout.at(layout)[p]) {
        continue;
      }
      entrant.in_bucket[static_cast<std::size_t>(kProbes[p].bucket)] = true;
      any = true;
    }
    if (any) entrants.push_back(entrant);
  }
  std::stable_sort(entrants.begin(), entrants.end(), [&](const Entrant& a, const Entrant& b) {
    return best.distance(a.model.row->layout) < best.distance(b.model.row->layout);
  });
  return entrants;
}

Evidence model_rows(const std::vector<ModelledRow>& rows, const PackedView& weight,
                    const LinearDesc& desc, const Machine& machine, const DensePeer& dense,
                    const PlanOptions& options) {
  LayoutSizes sizes(weight);
  Evidence evidence;
  evidence.has_dense = true;
  evidence.modelled = true;
  evidence.probed.fill(true);
  for (const ModelledRow& row : rows) {
    Candidate candidate{.name = row.row->name,
                        .layout = row.row->layout,
                        .small = sizes.is_small(row.row->layout),
                        .bytes = sizes.bytes(row.row->layout),
                        .at = {},
                        .model = row.seconds};
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      const std::int64_t tokens = kProbes[p].tokens;
      Timing& timing = candidate.at[p];
      timing.known = true;
      timing.seconds = row.seconds[p];
      timing.dense_seconds =
          dense.seconds ? dense.seconds(tokens)
                        : modelled_dense_seconds(desc, machine, tokens, options.parallel.threads);
      timing.ratio = timing.dense_seconds / timing.seconds;
    }
    evidence.candidates.push_back(candidate);
  }
  return evidence;
}

}  // namespace gossamer::plan
