// SPDX-License-Identifier: BSD-3-Clause
// Threads, blocking and table rows of *_spmm_kcsr_f32.
//
//   for each panel of tokens, each block of rows (their sums stay in L2):
//     for each block of KC inputs: transpose X into a tile (L1), add every kept value of the rows
//     transpose the sums to Y, with residual and activation
#include "cpu/kcsr_task.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "core/layouts.h"
#include "cpu/kcsr_weight.h"
#include "cpu/registration.h"
#include "cpu/scratch.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;
using Weight = KcsrWeight;

constexpr std::int64_t kMinWorkPerThread =
    16384;  ///< vector multiply-adds; below, waking a thread costs more

/// What one thread does: rows × tokens of one batch.
struct Part {
  std::int64_t row_begin;
  std::int64_t row_end;
  std::int64_t token_begin;
  std::int64_t token_end;
};

/// Pointers of a call for one batch.
struct Call {
  const float* x;
  std::int64_t x_stride;
  float* y;
  std::int64_t y_stride;
  const float* bias;
  const float* residual;
  std::int64_t residual_stride;
  bool relu;

  Call(const LinearArgs& args, std::int64_t batch)
      : x(static_cast<const float*>(args.x) + batch * args.x_batch_stride),
        x_stride(args.x_stride),
        y(static_cast<float*>(args.y) + batch * args.y_batch_stride),
        y_stride(args.y_stride),
        bias(static_cast<const float*>(args.bias)),
        residual(static_cast<const float*>(args.residual)),
        residual_stride(args.residual_stride),
        relu(args.activation == Activation::kRelu) {
    if (bias != nullptr) bias += batch * args.weight.out();
    if (residual != nullptr) residual += batch * args.residual_batch_stride;
  }
};

/// All inputs of rows [row_begin, row_end) for one panel of `tokens` tokens.
void run_panel(const KcsrFunctions& functions, const Weight& weight, const Call& call, int width,
               bool one, std::int64_t token, std::int64_t tokens, std::int64_t row_begin,
               std::int64_t row_end) {
  const std::int64_t lanes = functions.vector_lanes * (one ? 1 : kPanelVectors[width]);
  float* tile = scratch(weight.block * lanes + kSumsFloats);
  float* sums = tile + weight.block * lanes;
  const std::int64_t rows_at_once = kSumsFloats / lanes;
  const float* x = call.x + token * call.x_stride;
  for (std::int64_t row = row_begin; row < row_end; row += rows_at_once) {
    const std::int64_t last = std::min(row + rows_at_once, row_end);
    for (std::int64_t k = 0; k < weight.block_count; ++k) {
      const std::int64_t columns = std::min(weight.block, weight.in - k * weight.block);
      const float* block_x = x + k * weight.block;
      if (!one) functions.pack({block_x, call.x_stride, tokens, columns, tile, lanes});
      const KcsrAddTask task{weight.values + weight.blocks[k],
                             weight.cols + weight.blocks[k],
                             weight.segments + k * (weight.out + 1),
                             row,
                             last,
                             one ? block_x : tile,
                             sums,
                             k == 0,
                             call.bias};
      one ? functions.add_one(task) : functions.add[width](task);
    }
    const KcsrStoreTask store{
        sums,
        last - row,
        lanes,
        tokens,
        call.y + token * call.y_stride + row,
        call.y_stride,
        call.residual == nullptr ? nullptr : call.residual + token * call.residual_stride + row,
        call.residual_stride,
        call.relu};
    one ? functions.store_one(store) : functions.store(store);
  }
}

void run_part(const KcsrFunctions& functions, const Weight& weight, const Call& call, int vectors,
              const Part& part) {
  if (part.row_begin >= part.row_end) return;
  for (std::int64_t token = part.token_begin; token < part.token_end;) {
    const std::int64_t left = part.token_end - token;
    const bool one = vectors == 0;
    const int width = one ? 0 : panel_width(left, functions.vector_lanes, vectors);
    const std::int64_t tokens =
        one ? 1 : std::min(left, kPanelVectors[width] * functions.vector_lanes);
    run_panel(functions, weight, call, width, one, token, tokens, part.row_begin, part.row_end);
    token += tokens;
  }
}

/// `vectors`: of the widest panel; 0 takes tokens one by one.
void run(const KcsrFunctions& functions, int vectors, const LinearArgs& args) {
  const std::int64_t batch = args.weight.batch();
  const std::int64_t lanes = vectors == 0 ? 1 : functions.vector_lanes * vectors;
  const std::int64_t panels = ceil_div(args.tokens, lanes);
  const std::int64_t work =
      args.weight.kept() * ceil_div(args.tokens, functions.vector_lanes) / kMinWorkPerThread;
  const std::int64_t threads =
      std::clamp(work, std::int64_t{1}, std::int64_t{std::max(args.parallel.threads, 1)});
  // Tokens first, because a tile is then transposed once; rows where panels do not suffice.
  const std::int64_t token_parts = std::min(threads, panels);
  const std::int64_t row_parts = batch >= threads ? 1 : ceil_div(threads, token_parts);
  const std::int64_t parts = token_parts * row_parts;
  ParallelFor parallel = args.parallel;
  if (threads == 1) parallel.run = nullptr;
  parallel_for(parallel, batch * parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const Weight weight(args.weight, item / parts);
      const std::int64_t row = item % parts / token_parts;
      const std::int64_t column = item % parts % token_parts;
      run_part(functions, weight, Call(args, item / parts), vectors,
               {weight.balanced_row(row, row_parts), weight.balanced_row(row + 1, row_parts),
                panels * column / token_parts * lanes,
                std::min(panels * (column + 1) / token_parts * lanes, args.tokens)});
    }
  });
}

/// Cycles that the model charges, by instruction set.
struct Cost {
  double per_value;      ///< broadcast, index, loop
  double per_vector;     ///< multiply-add with a load from the tile
  double per_segment;    ///< a row in a block: offsets and one mispredicted branch
  double one_per_group;  ///< a vector of gathered inputs
};

// Fitted on zen5-avx512 at 1024×1024, 50–95 % zeros, 1 to 256 tokens, 2026-11-23.
constexpr Cost kGenericCost{2.0, 0.7, 16.0, 8.0};
constexpr Cost kAvx2Cost{1.0, 0.5, 8.0, 9.0};
constexpr Cost kAvx512Cost{1.0, 0.6, 8.0, 0.0};

double seconds(const KcsrFunctions& functions, const Cost& cost, int vectors, std::int64_t block,
               const LinearDesc& desc, std::int64_t tokens, int threads) {
  constexpr double kHertz = 3.5e9;
  constexpr double kBytesPerCycle = 12.0;
  const auto batch = static_cast<double>(desc.batch);
  const auto out = static_cast<double>(desc.out);
  const auto in = static_cast<double>(desc.in);
  const auto lanes = static_cast<double>(functions.vector_lanes);
  const double kept = batch * out * in * desc.density;
  const double segments = batch * out * static_cast<double>(ceil_div(desc.in, block));
  double cycles = 0.0;
  if (vectors == 0) {
    const double groups = std::max(kept / lanes + 0.5 * segments, segments);
    cycles = static_cast<double>(tokens) * (groups * cost.one_per_group + segments * 4.0);
  } else {
    for (std::int64_t left = tokens; left > 0;) {
      const int width = panel_width(left, functions.vector_lanes, vectors);
      const double used = kPanelVectors[width];
      // A tile beyond 32 KB no longer fits beside the sums in L1.
      const double tile = static_cast<double>(block) * used * lanes * 4.0;
      const double spill = tile > 32768.0 ? 1.3 : 1.0;
      const double transposes = (in + out) * used * lanes * batch * 0.5;
      cycles += kept * (cost.per_value + cost.per_vector * used * spill) +
                segments * (cost.per_segment + used) + transposes;
      left -= kPanelVectors[width] * functions.vector_lanes;
    }
  }
  const double memory = (kept * 5.0 + segments * 4.0) / kBytesPerCycle;
  const double work = kept * static_cast<double>(ceil_div(tokens, functions.vector_lanes));
  const double used_threads =
      std::clamp(work / static_cast<double>(kMinWorkPerThread), 1.0, std::max(threads, 1) * 1.0);
  return std::max(cycles, memory) / (kHertz * used_threads);
}

/// One row of the table: an instruction set, a block of inputs, a widest panel.
template <const KcsrFunctions& functions, const Cost& cost, Layout layout, int vectors>
void add_row(std::string_view name, std::uint32_t needs) {
  LinearKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = layout;
  kernel.weight_dtype = DType::kFloat32;
  kernel.activation_dtype = DType::kFloat32;
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return seconds(functions, cost, vectors, detail::kcsr_block(layout), desc, tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) { run(functions, vectors, args); };
  register_linear_kernel(kernel);
}

}  // namespace

void register_spmm_kcsr() {
  using enum Layout;
  add_row<generic_spmm_kcsr_f32, kGenericCost, kKcsr64, 8>("generic_spmm_kcsr64_f32", kIsaGeneric);
  add_row<generic_spmm_kcsr_f32, kGenericCost, kKcsr128, 8>("generic_spmm_kcsr128_f32",
                                                            kIsaGeneric);
  add_row<generic_spmm_kcsr_f32, kGenericCost, kKcsr256, 8>("generic_spmm_kcsr256_f32",
                                                            kIsaGeneric);
#if defined(__x86_64__)
  add_row<avx2_spmm_kcsr_f32, kAvx2Cost, kKcsr128, 8>("avx2_spmm_kcsr128_f32_nv8", kIsaAvx2);
  add_row<avx2_spmm_kcsr_f32, kAvx2Cost, kKcsr256, 8>("avx2_spmm_kcsr256_f32_nv8", kIsaAvx2);
  add_row<avx2_spmm_kcsr_f32, kAvx2Cost, kKcsr256, 4>("avx2_spmm_kcsr256_f32_nv4", kIsaAvx2);
  add_row<avx2_spmm_kcsr_f32, kAvx2Cost, kKcsr128, 0>("avx2_spmv_kcsr128_f32", kIsaAvx2);
  add_row<avx2_spmm_kcsr_f32, kAvx2Cost, kKcsr256, 0>("avx2_spmv_kcsr256_f32", kIsaAvx2);

  add_row<avx512_spmm_kcsr_f32, kAvx512Cost, kKcsr64, 8>("avx512_spmm_kcsr64_f32_nv8", kIsaAvx512);
  add_row<avx512_spmm_kcsr_f32, kAvx512Cost, kKcsr128, 8>("avx512_spmm_kcsr128_f32_nv8",
                                                          kIsaAvx512);
  add_row<avx512_spmm_kcsr_f32, kAvx512Cost, kKcsr128, 4>("avx512_spmm_kcsr128_f32_nv4",
                                                          kIsaAvx512);
  add_row<avx512_spmm_kcsr_f32, kAvx512Cost, kKcsr256, 4>("avx512_spmm_kcsr256_f32_nv4",
                                                          kIsaAvx512);
#endif
}

}  // namespace gossamer::cpu
