// SPDX-License-Identifier: BSD-3-Clause
#include "plan/conv_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "core/fail.h"
#include "core/layouts.h"
#include "plan/cache.h"
#include "plan/dense_model.h"
#include "plan/kernel_table.h"
#include "plan/memory.h"

namespace gossamer {
namespace plan {
namespace {

std::int64_t map_side(std::int64_t side, std::int64_t stride, std::int64_t dilation,
                      std::int64_t kernel, std::int64_t padding) {
  return std::max<std::int64_t>((side - 1) * stride + dilation * (kernel - 1) + 1 - padding, 1);
}

}  // namespace

Conv2dShape probe_shape(const PackedView& weight, const Conv2dLayer& layer,
                        const ConvProbe& probe) {
  const PackedHeader& h = weight.header();
  const std::int64_t height = map_side(probe.side, layer.stride_h, layer.dilation_h, h.kernel_h,
                                       layer.pad_top + layer.pad_bottom);
  const std::int64_t width = map_side(probe.side, layer.stride_w, layer.dilation_w, h.kernel_w,
                                      layer.pad_left + layer.pad_right);
  return conv2d_shape(weight, layer, probe.images, height, width);
}

std::array<Probe, kProbeCount> conv_probes(const PackedView& weight, const Conv2dLayer& layer) {
  std::array<Probe, kProbeCount> probes{};
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    const ConvProbe& probe = kConvProbes[std::min(p, kConvProbes.size() - 1)];
    probes[p] = {probe.bucket, probe_shape(weight, layer, probe).pixels()};
  }
  return probes;
}

int last_aside(const PackedView& weight) { return weight.taps() > 1 ? token_bucket(4) : -1; }

}  // namespace plan

namespace {

using detail::fail;
using plan::plain_plan;

/// A row that the caller or the environment insists on.
struct Forced {
  const Conv2dKernel* row = nullptr;
  bool dense = false;
  std::string source;  ///< "kernel", "GOSSAMER_KERNEL"; empty for a free choice
};

bool runs_here(const Conv2dKernel& row, const PackedView& weight, const Machine& machine) {
  return row.dtype == weight.dtype() && machine.has(row.needs) && host_machine().has(row.needs);
}

Forced forced_kernel(const PackedView& weight, const Machine& machine, const PlanOptions& options) {
  const bool asked = !options.kernel.empty();
  const std::string source = asked ? "kernel" : "GOSSAMER_KERNEL";
  const std::string& name = asked ? options.kernel : plan::environment_kernel();
  if (name == kDenseKernel) return {.row = nullptr, .dense = true, .source = source};
  const Conv2dKernel* row = asked ? find_conv2d_kernel(name) : plan::environment_conv2d_row();
  if (row != nullptr && runs_here(*row, weight, machine)) {
    return {.row = row, .dense = false, .source = source};
  }
  if (!asked) return {};
  fail(ErrorCode::kUnsupported, "kernel '{}' {}; leave kernel empty for a free choice", name,
       row == nullptr ? "is no row of the convolutions' table"
                      : fmt::format("cannot compute {} weights on {}", dtype_name(weight.dtype()),
                                    machine.name));
}

// Rows are left out where the layout has one of wider vectors here: they are no faster, and fewer
// candidates leave each more rounds.
std::vector<const Conv2dKernel*> runnable_rows(const PackedView& weight, const Machine& machine,
                                               MemoryMode memory, const Forced& forced) {
  if (forced.row != nullptr) return {forced.row};
  std::vector<const Conv2dKernel*> rows;
  std::map<Layout, int> widest;
  plan::LayoutSizes sizes(weight);
  for (const Conv2dKernel& row : conv2d_kernels()) {
    if (!runs_here(row, weight, machine)) continue;
    if (memory == MemoryMode::kLow && !sizes.is_small(row.layout)) continue;
    rows.push_back(&row);
    widest[row.layout] = std::max(widest[row.layout], row.lanes);
  }
  std::erase_if(rows, [&](const auto* row) { return row->lanes < widest[row->layout]; });
  return rows;
}

// Operation counts, not fitted times: a multiply-add of a vector for each kept value, a load and a
// store for each vector of the tile, the same for each of the sums.
double modelled_seconds(const Conv2dKernel& row, const PackedView& weight, std::int64_t pixels,
                        int threads) {
  constexpr double kCyclesPerSecond = 3.0e9;
  constexpr double kCyclesPerValue = 0.7;
  constexpr double kCyclesPerTileVector = 2.0;
  constexpr double kCallSeconds = 3.0e-6;
  const auto vectors = static_cast<double>(detail::ceil_div(pixels, row.lanes));
  const double values = kCyclesPerValue * static_cast<double>(weight.kept());
  const double tiles = kCyclesPerTileVector * static_cast<double>(weight.in() + weight.out());
  return kCallSeconds + vectors * (values + tiles) / (kCyclesPerSecond * std::max(threads, 1));
}

Plan modelled_plan(const std::vector<const Conv2dKernel*>& rows, const PackedView& weight,
                   const Conv2dLayer& layer, const Epilogue& epilogue, const Machine& machine,
                   const PlanOptions& options, const std::string& forced) {
  plan::Evidence evidence;
  evidence.unit = "pixel";
  evidence.has_dense = true;
  evidence.last_aside = plan::last_aside(weight);
  evidence.modelled = true;
  evidence.probes = plan::conv_probes(weight, layer);
  std::fill_n(evidence.probed.begin(), plan::kConvProbes.size(), true);
  const LinearDesc desc = describe(weight, epilogue);
  plan::LayoutSizes sizes(weight);
  for (const Conv2dKernel* row : rows) {
    plan::Candidate candidate{.name = row->name,
                              .layout = row->layout,
                              .small = sizes.is_small(row->layout),
                              .bytes = sizes.bytes(row->layout),
                              .at = {},
                              .model = {}};
    for (std::size_t p = 0; p < plan::kConvProbes.size(); ++p) {
      const std::int64_t pixels = evidence.probes[p].tokens;
      plan::Timing& timing = candidate.at[p];
      timing.known = true;
      timing.seconds =
          modelled_seconds(*row, weight, pixels, options.parallel.threads) + options.call_overhead;
      timing.dense_seconds =
          plan::modelled_dense_seconds(desc, machine, pixels, options.parallel.threads);
      timing.ratio = timing.dense_seconds / timing.seconds;
    }
    evidence.candidates.push_back(candidate);
  }
  return plan::decide(evidence, options.memory, forced).plan;
}

std::string conv_key(const PackedView& weight, const Conv2dLayer& layer, const Epilogue& epilogue,
                     const Machine& machine, const Conv2dDensePeer& dense,
                     const PlanOptions& options, const Forced& forced) {
  std::uint32_t table = 0;
  for (const Conv2dKernel& row : conv2d_kernels()) table = table * 31u + kernel_hash(row.name);
  DensePeer peer;
  peer.name = dense.name;
  if (dense.run) peer.run = [](std::int64_t) {};
  const PackedHeader& h = weight.header();
  return fmt::format(
      "conv2d rows={:08x} kernel={}x{} stride={}x{} padding={}/{}/{}/{} dilation={}x{} last={} {}",
      table, h.kernel_h, h.kernel_w, layer.stride_h, layer.stride_w, layer.pad_top,
      layer.pad_bottom, layer.pad_left, layer.pad_right, layer.dilation_h, layer.dilation_w,
      layer.channels_last,
      plan::cache_key(describe(weight, epilogue), machine, peer, options,
                      std::string(forced.row != nullptr ? forced.row->name : "")));
}

bool plan_runs_here(const Plan& plan, const PackedView& weight, const Machine& machine) {
  bool any_sparse = false;
  for (const PlanChoice& choice : plan.choices) {
    if (choice.kernel == kDenseKernel) continue;
    const Conv2dKernel* row = find_conv2d_kernel(choice.kernel);
    if (row == nullptr || !plan::holds(plan, row->layout) || !runs_here(*row, weight, machine)) {
      return false;
    }
    any_sparse = true;
  }
  return any_sparse == plan.sparse;
}

}  // namespace

Plan plan_conv2d(const PackedView& weight, const Conv2dLayer& layer, const Epilogue& epilogue,
                 const Machine& machine, const Conv2dDensePeer& dense, const PlanOptions& options) {
  if (weight.header().kernel_h == 0) {
    fail(ErrorCode::kInvalidArgument,
         "plan_conv2d: the {} × {} weight is a matrix; pack it with kernel_h and kernel_w",
         weight.out(), weight.in());
  }
  const Forced forced = forced_kernel(weight, machine, options);
  if (forced.dense) return plain_plan(weight, fmt::format("plain: {} is dense", forced.source));
  if (weight.out() == 0 || weight.in() == 0) {
    return plain_plan(weight, "plain: the weight is empty, there is nothing to gain");
  }
  const std::vector<const Conv2dKernel*> rows =
      runnable_rows(weight, machine, options.memory, forced);
  if (rows.empty() && options.memory == MemoryMode::kLow &&
      !runnable_rows(weight, machine, MemoryMode::kDefault, forced).empty()) {
    return plain_plan(weight,
                      "plain: the layouts that convolutions are computed in take more than 1.15 "
                      "times the bytes of its format, which memory=\"low\" does not allow");
  }
  if (rows.empty()) {
    return plain_plan(weight, fmt::format("plain: no kernel computes a convolution with {} weights "
                                          "on {}; float32 and int8 have kernels",
                                          dtype_name(weight.dtype()), machine.name));
  }
  if (options.mode == PlanMode::kModel) {
    return plan::for_weight(
        weight, modelled_plan(rows, weight, layer, epilogue, machine, options, forced.source));
  }
  const std::filesystem::path file = plan::cache_file(options.cache);
  const std::string key = conv_key(weight, layer, epilogue, machine, dense, options, forced);
  if (!file.empty()) {
    const auto sound = [&](const Plan& plan) { return plan_runs_here(plan, weight, machine); };
    if (std::optional<Plan> kept = plan::read_cached_plan(file, key, sound)) {
      return plan::for_weight(weight, std::move(*kept));
    }
  }
  const plan::ConvProblem problem{weight, layer, epilogue, dense, options};
  const plan::Verdict verdict = plan::measure_conv2d(rows, problem, forced.source);
  if (!file.empty() && !verdict.disturbed) plan::write_cached_plan(file, key, verdict.plan);
  return plan::for_weight(weight, verdict.plan);
}

}  // namespace gossamer
