// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/fail.h"
#include "gossamer/linear.h"
#include "plan/cache.h"
#include "plan/decide.h"
#include "plan/kernel_table.h"
#include "plan/measure.h"
#include "plan/memory.h"

namespace gossamer {
namespace {

using detail::fail;
using plan::kProbeCount;
using plan::kProbes;
using plan::ModelledRow;
using plan::plain_plan;

/// A row that the caller or the environment insists on.
struct Forced {
  const LinearKernel* row = nullptr;
  bool dense = false;
  std::string source;  ///< "kernel", "GOSSAMER_KERNEL"; empty for a free choice
};

Forced forced_kernel(const LinearDesc& desc, const Machine& machine, const PlanOptions& options) {
  const bool asked = !options.kernel.empty();
  const std::string& name = asked ? options.kernel : plan::environment_kernel();
  const std::string source = asked ? "kernel" : "GOSSAMER_KERNEL";
  if (name.empty()) return {};
  if (name == kDenseKernel) return {.row = nullptr, .dense = true, .source = source};
  if (!asked && plan::environment_linear_row() == nullptr) return {};  // a convolution's row
  const LinearKernel& row = plan::require_kernel(name, source);
  const std::string refusal = why_not(row, desc, machine);
  if (refusal.empty()) return {.row = &row, .dense = false, .source = source};
  // An argument is about this layer; the environment is about every layer of a process, some of
  // which the row cannot compute.
  if (!asked) return {};
  fail(ErrorCode::kUnsupported,
       "kernel '{}' cannot compute this {} x {} weight: {}; leave kernel empty for a free choice",
       name, desc.out, desc.in, refusal);
}

// Rows of a timed plan must run in this process, whatever machine the caller describes.
std::string refusal(const LinearKernel& row, const LinearDesc& desc, const Machine& machine,
                    PlanMode mode) {
  std::string text = why_not(row, desc, machine);
  if (!text.empty() || mode == PlanMode::kModel) return text;
  return why_not(row, desc, host_machine());
}

/// Of making X int8 before the product.
double quantization_seconds(const LinearDesc& desc, std::int64_t tokens, int threads) {
  constexpr double kElementsPerSecond = 5.0e9;
  if (!desc.epilogue.quantized) return 0.0;
  return static_cast<double>(desc.batch * tokens * desc.in) / (kElementsPerSecond * threads);
}

std::vector<ModelledRow> runnable_rows(const PackedView& weight, const LinearDesc& desc,
                                       const Machine& machine, const PlanOptions& options,
                                       const Forced& forced) {
  const int threads = std::max(options.parallel.threads, 1);
  std::vector<ModelledRow> rows;
  plan::LayoutSizes sizes(weight);
  for (const LinearKernel& row : linear_kernels()) {
    if (forced.row != nullptr && row.name != forced.row->name) continue;
    if (!refusal(row, desc, machine, options.mode).empty()) continue;
    const bool low = options.memory == MemoryMode::kLow && forced.row == nullptr;
    if (low && !sizes.is_small(row.layout)) continue;
    ModelledRow modelled;
    modelled.row = &row;
    bool sound = true;
    for (std::size_t p = 0; p < kProbeCount; ++p) {
      modelled.seconds[p] = row.seconds(desc, machine, kProbes[p].tokens, threads) +
                            quantization_seconds(desc, kProbes[p].tokens, threads) +
                            options.call_overhead;
      sound &= std::isfinite(modelled.seconds[p]) && modelled.seconds[p] > 0.0;
    }
    if (sound) rows.push_back(modelled);
  }
  return rows;
}

std::string no_row_reason(const LinearDesc& desc, const Machine& machine, PlanMode mode) {
  constexpr std::size_t kShown = 3;
  std::set<std::string> sentences;
  std::string text;
  // Rows that the machine could run say what is wrong with the weight; the others only what is
  // wrong with the machine, so they come last.
  for (const bool runnable : {true, false}) {
    for (const LinearKernel& row : linear_kernels()) {
      if (machine.has(row.needs) != runnable || sentences.size() >= kShown) continue;
      const std::string sentence = refusal(row, desc, machine, mode);
      if (!sentences.insert(sentence).second) continue;
      text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", row.name, sentence);
    }
  }
  return fmt::format("plain: no kernel computes it on {} ({})", machine.name,
                     text.empty() ? "the kernel table is empty" : text);
}

}  // namespace

Plan plan_linear(const PackedView& weight, const Epilogue& epilogue, const Machine& machine,
                 const DensePeer& dense, const PlanOptions& options) {
  const LinearDesc desc = describe(weight, epilogue);
  const Forced forced = forced_kernel(desc, machine, options);
  if (forced.dense) return plain_plan(weight, fmt::format("plain: {} is dense", forced.source));
  if (desc.batch == 0 || desc.out == 0 || desc.in == 0) {
    return plain_plan(weight, "plain: the weight is empty, there is nothing to gain");
  }
  const std::vector<ModelledRow> rows = runnable_rows(weight, desc, machine, options, forced);
  if (rows.empty()) return plain_plan(weight, no_row_reason(desc, machine, options.mode));

  if (options.mode == PlanMode::kModel) {
    const plan::Evidence evidence = plan::model_rows(rows, weight, desc, machine, dense, options);
    return plan::for_weight(weight, plan::decide(evidence, options.memory, forced.source).plan);
  }
  const std::filesystem::path file = plan::cache_file(options.cache);
  const std::string key = plan::cache_key(desc, machine, dense, options,
                                          std::string(forced.row ? forced.row->name : ""));
  if (!file.empty()) {
    if (std::optional<Plan> kept = plan::read_cached_plan(file, key, desc, machine)) {
      return plan::for_weight(weight, std::move(*kept));
    }
  }
  const plan::Verdict verdict =
      plan::measure_rows(rows, weight, desc, machine, dense, options, forced.source);
  if (!file.empty() && !verdict.disturbed) plan::write_cached_plan(file, key, verdict.plan);
  return plan::for_weight(weight, verdict.plan);
}

void store_plan(PackedWeight& weight, const Plan& plan) {
  const PackedView view = weight.view();
  if (view.layout() != plan.layout || (view.header().has_second != 0) != plan.second.has_value()) {
    fail(ErrorCode::kInvalidArgument,
         "the plan is for {} layouts, {} first, the weight is in {}, {} first; convert() it first",
         plan.second ? 2 : 1, layout_name(plan.layout), view.header().has_second != 0 ? 2 : 1,
         layout_name(view.layout()));
  }
  auto* const header = reinterpret_cast<PackedHeader*>(weight.data());
  header->version = PackedHeader::kVersion;
  header->second_buckets = 0;
  for (std::size_t bucket = 0; bucket < plan.choices.size(); ++bucket) {
    const std::string& name = plan.choices[bucket].kernel;
    header->plan[bucket] = name.empty() ? 0 : kernel_hash(name);
    if (plan.second && plan::layout_of(name) == plan.second) {
      header->second_buckets |= static_cast<std::uint8_t>(1u << bucket);
    }
  }
  if (!plan.second) return;
  auto* const second = reinterpret_cast<PackedHeader*>(weight.data() + view.layout_bytes());
  if (second->magic == PackedHeader::kMagic) second->set_plan(*header);
}

}  // namespace gossamer
