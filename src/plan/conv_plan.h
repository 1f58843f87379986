// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <string>
#include <vector>

#include "gossamer/conv.h"
#include "plan/decide.h"

namespace gossamer::plan {

/// The row with the widest vectors that computes the layout and dtype in this process, or null.
const Conv2dKernel* widest_conv2d_row(Layout layout, DType dtype);

/// A square map on which rows are compared: what `layer` makes of it has about `side`² pixels an
/// image.
struct ConvProbe {
  std::int64_t images = 1;
  std::int64_t side = 1;
  int bucket = 0;
};

/// At least one of each bucket; small ones come first. The smallest map has 2×2 pixels and stands
/// for a single pixel too. Maps of 10 and 20 pixels a side fill the last vectors of a panel badly:
/// a row may lose a third of its speed there, and be the best at 7 or 14.
inline constexpr std::array<ConvProbe, 13> kConvProbes{{{1, 2, 0},
                                                        {1, 2, 1},
                                                        {2, 2, 2},
                                                        {1, 4, 3},
                                                        {1, 7, 4},
                                                        {1, 10, 4},
                                                        {1, 14, 5},
                                                        {1, 20, 5},
                                                        {1, 28, 6},
                                                        {16, 7, 6},
                                                        {1, 56, 7},
                                                        {16, 14, 7},
                                                        {16, 28, 7}}};
static_assert(kConvProbes.size() <= kProbeCount);

/// The last bucket that decides nothing (Evidence::last_aside). Filters of several taps see maps of
/// one and of four pixels hardly ever, and then mostly padding; but torch computes 128→128, 3×3,
/// channels-last, in 15 µs on one image of 2×2 pixels and in 98 µs on two, which would keep layers
/// plain that gain on all other maps. Filters of one tap see single pixels in squeeze-and-excite.
int last_aside(const PackedView& weight);

/// The shape of a call on a probe's map. Where the padding alone gives more pixels than the probe
/// asks for, the smallest map there is.
Conv2dShape probe_shape(const PackedView& weight, const Conv2dLayer& layer, const ConvProbe& probe);

/// The probes as decide() wants them, with the pixels that their maps really have.
std::array<Probe, kProbeCount> conv_probes(const PackedView& weight, const Conv2dLayer& layer);

/// What the weight and the layer are, as one call's arguments need it.
struct ConvProblem {
  const PackedView& weight;
  const Conv2dLayer& layer;
  const Epilogue& epilogue;
  const Conv2dDensePeer& dense;
  const PlanOptions& options;
};

/// Times rows beside dense, interleaved, as measure_rows does for linear layers: warm calls, orders
/// that alternate, medians, contested ratios again, the least times where they stay contested.
Verdict measure_conv2d(const std::vector<const Conv2dKernel*>& rows, const ConvProblem& problem,
                       const std::string& forced);

}  // namespace gossamer::plan
