// SPDX-License-Identifier: BSD-3-Clause
// The layouts kcsr64, kcsr128 and kcsr256 as a source of K-blocked kernels, and their table rows:
// the columns lie ready in memory.
#include <algorithm>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/kcsr_source.h"
#include "cpu/registration.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

// Fitted on zen5-avx512 at 1024×1024, 50–95 % zeros, 9 to 256 tokens, 2026-11-23; the fits are
// within 15 % of the times.
constexpr SpmmCost kGenericCost{2.0, 0.7, 16.0, 1.0, 0.0, 8.0};
constexpr SpmmCost kAvx2Cost128{1.14, 0.48, 0.0, 1.27};
constexpr SpmmCost kAvx2Cost256{0.64, 0.60, 1.8, 0.72};
constexpr SpmmCost kAvx2CostNarrow{0.89, 0.50, 0.6, 0.83};
constexpr SpmmCost kAvx2CostOne{0.0, 0.0, 0.0, 0.0, 0.0, 9.0};
constexpr SpmmCost kAvx512Cost64{1.57, 0.54, 13.9, 0.96};
constexpr SpmmCost kAvx512Cost128{1.00, 0.71, 0.2, 1.09};
constexpr SpmmCost kAvx512CostNarrow128{1.25, 0.54, 0.5, 1.02};
constexpr SpmmCost kAvx512CostNarrow256{0.83, 0.80, 0.7, 0.67};

/// One row of the table: an instruction set, a block of inputs, a widest panel.
template <const KcsrFunctions& functions, const SpmmCost& cost, Layout layout, int vectors>
void add_row(std::string_view name, std::uint32_t needs) {
  LinearKernel kernel = linear_row(name, needs, layout, DType::kFloat32);
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return spmm_seconds(functions.vector_lanes, cost, vectors, detail::kcsr_block(layout), desc,
                        tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) {
    run_spmm(functions, vectors, args,
             [&](std::int64_t batch) { return KcsrSource(args.weight, batch); });
  };
  register_linear_kernel(kernel);
}

}  // namespace

void register_spmm_kcsr() {
  using enum Layout;
  add_row<generic_spmm_f32, kGenericCost, kKcsr64, 8>("generic_spmm_kcsr64_f32", kIsaGeneric);
  add_row<generic_spmm_f32, kGenericCost, kKcsr128, 8>("generic_spmm_kcsr128_f32", kIsaGeneric);
  add_row<generic_spmm_f32, kGenericCost, kKcsr256, 8>("generic_spmm_kcsr256_f32", kIsaGeneric);
#if defined(__x86_64__)
  constexpr const KcsrFunctions& avx2 = avx2_spmm_f32;
  constexpr const KcsrFunctions& avx512 = avx512_spmm_f32;
  add_row<avx2, kAvx2Cost128, kKcsr128, 8>("avx2_spmm_kcsr128_f32_nv8", kIsaAvx2);
  add_row<avx2, kAvx2Cost256, kKcsr256, 8>("avx2_spmm_kcsr256_f32_nv8", kIsaAvx2);
  add_row<avx2, kAvx2CostNarrow, kKcsr256, 4>("avx2_spmm_kcsr256_f32_nv4", kIsaAvx2);
  add_row<avx2, kAvx2CostOne, kKcsr128, 0>("avx2_spmv_kcsr128_f32", kIsaAvx2);
  add_row<avx2, kAvx2CostOne, kKcsr256, 0>("avx2_spmv_kcsr256_f32", kIsaAvx2);

  add_row<avx512, kAvx512Cost64, kKcsr64, 8>("avx512_spmm_kcsr64_f32_nv8", kIsaAvx512);
  add_row<avx512, kAvx512Cost128, kKcsr128, 8>("avx512_spmm_kcsr128_f32_nv8", kIsaAvx512);
  add_row<avx512, kAvx512CostNarrow128, kKcsr128, 4>("avx512_spmm_kcsr128_f32_nv4", kIsaAvx512);
  add_row<avx512, kAvx512CostNarrow256, kKcsr256, 4>("avx512_spmm_kcsr256_f32_nv4", kIsaAvx512);
#endif
}

}  // namespace gossamer::cpu
