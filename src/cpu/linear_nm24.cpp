// SPDX-License-Identifier: BSD-3-Clause
// Threads, blocking and table rows of *_linear_nm24_f32.
//
//            1024 columns
//          ┌──────────────┐
//  256 rows│ weight block │ 0.5 MB packed, stays in L2 while all tokens pass by, 8 at a time
//          └──────────────┘
//  8 tokens│   X panel    │ 32 KB, stays in L1
//          └──────────────┘
//
// The panel is copied to a scratch of odd stride, because rows a power of two bytes apart fall into
// the same cache sets (measured at in = 2048, 8 tokens, AVX2: 1.6x).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/layouts.h"
#include "cpu/nm24_task.h"
#include "cpu/registration.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

constexpr std::int64_t kPanelTokens = 8;
constexpr std::int64_t kChunkColumns = 1024;
constexpr std::int64_t kPanelStride = kChunkColumns + 16;
constexpr std::int64_t kBlockPairs = 128;
constexpr std::int64_t kMinPairsPerThread = 16;

using Function = void (*)(const Nm24Task&);

/// Where a weight's arrays lie for one batch.
struct WeightView {
  const float* values;
  const std::uint8_t* meta;
  std::int64_t groups;  ///< of a row pair, padded to a multiple of 8
  std::int64_t pairs;
};

WeightView weight_view(const PackedView& weight, std::int64_t batch) {
  const std::int64_t groups = detail::nm24_groups(weight.in());
  const std::int64_t pairs = detail::ceil_div(weight.out(), 2);
  return {weight.array<float>(detail::Nm24Arrays::kValues) + batch * pairs * groups * 4,
          weight.array<std::uint8_t>(detail::Nm24Arrays::kMeta) + batch * pairs * groups, groups,
          pairs};
}

/// Copies tokens × columns of X into the panel, zeros behind the last column.
void copy_panel(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                std::int64_t padded_columns, float* panel) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* row = panel + t * kPanelStride;
    std::memcpy(row, x + t * x_stride, static_cast<std::size_t>(columns) * sizeof(float));
    std::fill(row + columns, row + padded_columns, 0.0f);
  }
}

/// Rows of pairs [pair_begin, pair_end) for tokens [token_begin, token_end) of one batch.
void run_part(Function function, const LinearArgs& args, std::int64_t batch,
              std::int64_t pair_begin, std::int64_t pair_end, std::int64_t token_begin,
              std::int64_t token_end) {
  alignas(64) float panel[kPanelTokens * kPanelStride];
  const WeightView weight = weight_view(args.weight, batch);
  const std::int64_t in = args.weight.in();
  const auto* x = static_cast<const float*>(args.x) + batch * args.x_batch_stride;
  const auto* residual = static_cast<const float*>(args.residual);
  const auto* bias = static_cast<const float*>(args.bias);
  constexpr std::int64_t kChunkGroups = kChunkColumns / 4;

  Nm24Task task{};
  task.values_stride = weight.groups * 4;
  task.meta_stride = weight.groups;
  task.out = args.weight.out();
  task.y_stride = args.y_stride;
  task.bias = bias == nullptr ? nullptr : bias + batch * task.out;
  task.residual_stride = args.residual_stride;
  task.activation = args.activation;
  for (std::int64_t block = pair_begin; block < pair_end; block += kBlockPairs) {
    task.pair_begin = block;
    task.pair_end = std::min(block + kBlockPairs, pair_end);
    for (std::int64_t group = 0; group < weight.groups; group += kChunkGroups) {
      task.groups = std::min(kChunkGroups, weight.groups - group);
      task.values = weight.values + group * 4;
      task.meta = weight.meta + group;
      task.first_chunk = group == 0;
      task.last_chunk = group + task.groups == weight.groups;
      const std::int64_t columns = std::min(4 * task.groups, in - 4 * group);
      for (std::int64_t token = token_begin; token < token_end; token += kPanelTokens) {
        task.tokens = std::min(kPanelTokens, token_end - token);
        task.x = x + token * args.x_stride + 4 * group;
        task.x_stride = args.x_stride;
        if (task.tokens > 1 || columns < 4 * task.groups) {
          copy_panel(task.x, task.x_stride, task.tokens, columns, 4 * task.groups, panel);
          task.x = panel;
          task.x_stride = kPanelStride;
        }
        task.y = static_cast<float*>(args.y) + batch * args.y_batch_stride + token * args.y_stride;
        task.residual = residual == nullptr ? nullptr
                                            : residual + batch * args.residual_batch_stride +
                                                  token * args.residual_stride;
        function(task);
      }
    }
  }
}

void run(Function function, const LinearArgs& args) {
  const std::int64_t pairs = detail::ceil_div(args.weight.out(), 2);
  const std::int64_t panels = detail::ceil_div(args.tokens, kPanelTokens);
  const std::int64_t threads = std::max(args.parallel.threads, 1);
  // Rows first: then every thread streams its own part of the weight once.
  const std::int64_t row_parts = std::clamp(pairs / kMinPairsPerThread, std::int64_t{1}, threads);
  const std::int64_t token_parts = std::clamp(threads / row_parts, std::int64_t{1}, panels);
  const std::int64_t parts = row_parts * token_parts;
  parallel_for(
      args.parallel, args.weight.batch() * parts, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t item = begin; item < end; ++item) {
          const std::int64_t part = item % parts;
          const std::int64_t row = part / token_parts;
          const std::int64_t column = part % token_parts;
          run_part(function, args, item / parts, pairs * row / row_parts,
                   pairs * (row + 1) / row_parts, panels * column / token_parts * kPanelTokens,
                   std::min(panels * (column + 1) / token_parts * kPanelTokens, args.tokens));
        }
      });
}

/// Cycles: a word of 16 kept values costs `word` to prepare and `token` for every token. The memory
/// bound is the packed weight at 12 bytes a cycle and thread. Fitted on zen5-avx512 at 1024×1024
/// and 2048×2048, 2026-11.
double seconds(const LinearDesc& desc, std::int64_t tokens, int threads, double word,
               double token) {
  constexpr double kHertz = 3.5e9;
  constexpr double kBytesPerCycle = 12.0;
  const double words = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                       static_cast<double>(detail::nm24_groups(desc.in)) / 8.0;
  const double panels = static_cast<double>(detail::ceil_div(tokens, kPanelTokens));
  const double compute = words * (word * panels + token * static_cast<double>(tokens));
  const double memory = words * 68.0 / kBytesPerCycle;
  return std::max(compute, memory) / (kHertz * std::max(threads, 1));
}

std::string refuses(const LinearDesc& desc) {
  if (desc.pattern == Pattern::nm(2, 4)) return {};
  return "holds 2:4 weights only, not " + desc.pattern.to_string();
}

LinearKernel row(std::string_view name, std::uint32_t needs) {
  LinearKernel kernel = linear_row(name, needs, Layout::kNm24Pairs, DType::kFloat32);
  kernel.refuses = refuses;
  return kernel;
}

}  // namespace

void register_linear_nm24() {
  LinearKernel generic = row("generic_linear_nm24_f32", kIsaGeneric);
  generic.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return seconds(desc, tokens, threads, 16.0, 24.0);
  };
  generic.run = [](const LinearArgs& args) { run(generic_linear_nm24_f32, args); };
  register_linear_kernel(generic);
#if defined(__x86_64__)
  LinearKernel avx2 = row("avx2_linear_nm24_f32", kIsaAvx2);
  avx2.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return seconds(desc, tokens, threads, 2.0, 1.5);
  };
  avx2.run = [](const LinearArgs& args) { run(avx2_linear_nm24_f32, args); };
  register_linear_kernel(avx2);

  LinearKernel avx512 = row("avx512_linear_nm24_f32", kIsaAvx512);
  avx512.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return seconds(desc, tokens, threads, 1.5, 0.8);
  };
  avx512.run = [](const LinearArgs& args) { run(avx512_linear_nm24_f32, args); };
  register_linear_kernel(avx512);
#endif
}

}  // namespace gossamer::cpu
