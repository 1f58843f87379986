// SPDX-License-Identifier: BSD-3-Clause
// The layouts of row pairs as a source of K-blocked kernels, and their table rows: X is loaded once
// for two rows where both keep a column, and loops end where the processor expects it.
#include <algorithm>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/registration.h"
#include "cpu/row_pairs_source.h"
#include "cpu/row_pairs_task.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

static_assert(kRowPairsRows == detail::kRowPairsPanel);
static_assert(detail::RowPairsSegment::kValue == 0 && detail::RowPairsSegment::kCol == 1 &&
              detail::RowPairsSegment::kPairs == 2 && detail::RowPairsSegment::kCount == 3);

using FewFunction = void (*)(const RowPairsFewTask&);
constexpr std::int64_t kFewTokens = kFewAtOnce;  ///< more are quicker as a panel, part of it empty

/// Cycles of few tokens, fitted as those below at 3072×768.
struct FewCost {
  double per_value = 0.4;  ///< of kFewAtOnce tokens or less
  double per_pair = 3.9;   ///< and block, likewise
  double per_token_value = 0.05;
  double per_token_pair = 5.2;
};

/// Whether few tokens are worth a second thread: sixteen kept values of a token take about as long
/// as eight of the multiply-adds that kMinWorkPerThread counts.
bool few_in_parallel(std::int64_t kept, std::int64_t tokens) {
  return kept * tokens / 2 >= 2 * kMinWorkPerThread;
}

/// Few tokens of all batches, kFewAtOnce at a time, panels of rows among the threads.
void run_few(FewFunction few, const LinearArgs& args) {
  const std::int64_t panels = detail::ceil_div(args.weight.out(), kRowPairsRows);
  ParallelFor parallel = args.parallel;
  if (!few_in_parallel(args.weight.kept(), args.tokens)) parallel.run = nullptr;
  for (std::int64_t batch = 0; batch < args.weight.batch(); ++batch) {
    const RowPairsSource source(args.weight, batch);
    const SpmmCall call(args, batch);
    parallel_for(parallel, panels, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t panel = begin; panel < end; ++panel) {
        const std::int64_t row = panel * kRowPairsRows;
        const std::int64_t rows = std::min(kRowPairsRows, source.out - row);
        for (std::int64_t token = 0; token < args.tokens; token += kFewAtOnce) {
          RowPairsFewTask task = source.few_task(row);
          task.x = reinterpret_cast<const float*>(call.x(token, 0));
          task.x_stride = call.x_stride();
          task.out = call.finish(token, std::min(kFewAtOnce, args.tokens - token), row, rows);
          few(task);
        }
      }
    });
  }
}

double few_seconds(const LinearDesc& desc, std::int64_t tokens, int threads) {
  constexpr double kHertz = 3.5e9;
  constexpr FewCost cost;
  const auto rows = static_cast<double>(desc.batch * desc.out);
  const double kept = rows * static_cast<double>(desc.in) * desc.density;
  const double pairs = rows / 2 * static_cast<double>(detail::ceil_div(desc.in, kFewBlock));
  const auto passes = static_cast<double>(detail::ceil_div(tokens, kFewAtOnce));
  double share = 1.0;  // of the thread that has most panels
  if (few_in_parallel(static_cast<std::int64_t>(kept), tokens)) {
    const std::int64_t panels = detail::ceil_div(desc.out, kRowPairsRows);
    share = static_cast<double>(detail::ceil_div(panels, std::max(threads, 1))) /
            static_cast<double>(panels);
  }
  return share *
         (passes * (kept * cost.per_value + pairs * cost.per_pair) +
          static_cast<double>(tokens) *
              (kept * cost.per_token_value + pairs * cost.per_token_pair)) /
         kHertz;
}

// Fitted on a 2-processor Emerald Rapids at 1024×1024, 50–95 % zeros, 16 to 256 tokens, 2026-11-30,
// within 15 % of the times, which were scaled to those of the kcsr rows' models (0.67 of what these
// rows take there): a model only ranks rows. A row in a block costs a kcsr row 20 to 25 cycles
// there, a pair's 1. The portable row is not fitted.
constexpr SpmmCost kGenericCost{2.0, 0.7, 16.0, 1.0};
constexpr SpmmCost kAvx2Cost64{0.37, 0.47, 1.3, 0.73};
constexpr SpmmCost kAvx2Cost128{0.51, 0.48, 0.9, 0.69};
constexpr SpmmCost kAvx512Cost64{0.87, 0.36, 0.1, 1.33};
constexpr SpmmCost kAvx512Cost128{1.05, 0.34, 1.1, 0.75};

/// Panels of one instruction set.
struct Panels {
  const KcsrFunctions& functions;
  const SpmmCost& cost;
  int vectors;
};

constexpr Panels kGenericPanels{generic_spmm_rowpairs_f32, kGenericCost, 8};
#if defined(__x86_64__)
constexpr Panels kAvx2Panels64{avx2_spmm_rowpairs_f32, kAvx2Cost64, 8};
constexpr Panels kAvx2Panels128{avx2_spmm_rowpairs_f32, kAvx2Cost128, 8};
constexpr Panels kAvx512Panels64{avx512_spmm_rowpairs_f32, kAvx512Cost64, 8};
constexpr Panels kAvx512Panels128{avx512_spmm_rowpairs_f32, kAvx512Cost128, 4};
#endif

/// `narrow`: panels for tokens that fill one of their vectors at most, where half of a wide one
/// would be empty: on an Emerald Rapids that takes 10 % (50 % zeros) to 20 % (80 %) longer.
/// `few`: of at most kFewTokens tokens; null where panels serve them too.
template <const Panels& wide, const Panels& narrow, Layout layout, FewFunction few = nullptr>
void add_row(std::string_view name, std::uint32_t needs) {
  LinearKernel kernel = linear_row(name, needs, layout, DType::kFloat32);
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    if (few != nullptr && tokens <= kFewTokens) return few_seconds(desc, tokens, threads);
    const Panels& panels = tokens <= narrow.functions.vector_lanes ? narrow : wide;
    return spmm_seconds(panels.functions.vector_lanes, panels.cost, panels.vectors,
                        detail::row_pairs_block(layout), desc, tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) {
    if (few != nullptr && args.tokens <= kFewTokens) return run_few(few, args);
    const Panels& panels = args.tokens <= narrow.functions.vector_lanes ? narrow : wide;
    run_spmm(panels.functions, panels.vectors, args,
             [&](std::int64_t batch) { return RowPairsSource(args.weight, batch); });
  };
  register_linear_kernel(kernel);
}

// Of units of four int8, fitted in the same way, 8 to 256 tokens, also within 10 %.
constexpr SpmmCost kQuadCost{0.44, 0.42, 1.0, 0.50};

/// Of quantized calls.
template <const KcsrFunctions& functions, const SpmmCost& cost, Layout layout, int vectors>
void add_quad_row(std::string_view name, std::uint32_t needs) {
  constexpr int kInputs = 4;  // of a unit
  LinearKernel kernel = linear_row(name, needs, layout, DType::kInt8);
  kernel.refuses = refuses_long_rows;
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return unit_seconds(functions.vector_lanes, cost, vectors, detail::row_pairs_block(layout),
                        kInputs, desc, tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) {
    // A kept value stands for part of a unit.
    constexpr SplitCost kSplit{0.66 / kInputs, 0.62 / kInputs};
    run_spmm(
        functions, vectors, args,
        [&](std::int64_t batch) { return RowQuadsSource(args.weight, batch); }, kSplit);
  };
  register_linear_kernel(kernel);
}

}  // namespace

void register_spmm_rowpairs() {
  using enum Layout;
  add_row<kGenericPanels, kGenericPanels, kRowPairs64>("generic_spmm_rowpairs64_f32", kIsaGeneric);
  add_row<kGenericPanels, kGenericPanels, kRowPairs128>("generic_spmm_rowpairs128_f32",
                                                        kIsaGeneric);
#if defined(__x86_64__)
  add_row<kAvx2Panels64, kAvx2Panels64, kRowPairs64>("avx2_spmm_rowpairs64_f32_nv8", kIsaAvx2);
  add_row<kAvx2Panels128, kAvx2Panels128, kRowPairs128>("avx2_spmm_rowpairs128_f32_nv8", kIsaAvx2);
  add_row<kAvx512Panels64, kAvx2Panels64, kRowPairs64, avx512_rowpairs_few_f32>(
      "avx512_spmm_rowpairs64_f32_nv8", kIsaAvx512 | kIsaAvx2);
  add_row<kAvx512Panels128, kAvx2Panels128, kRowPairs128>("avx512_spmm_rowpairs128_f32_nv4",
                                                          kIsaAvx512 | kIsaAvx2);
  add_quad_row<avx512vnni_spmm_rowquads, kQuadCost, kRowQuads512, 4>(
      "avx512vnni_spmm_rowquads512_int8_nv4", kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni);
#endif
}

}  // namespace gossamer::cpu
