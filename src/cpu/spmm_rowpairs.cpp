// SPDX-License-Identifier: BSD-3-Clause
// The layouts of row pairs as a source of K-blocked kernels, and their table rows: X is loaded once
// for two rows where both keep a column, and loops end where the processor expects it.
#include <cstdint>

#include "core/layouts.h"
#include "cpu/registration.h"
#include "cpu/row_pairs_source.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

static_assert(kRowPairsRows == detail::kRowPairsPanel);
static_assert(detail::RowPairsSegment::kValue == 0 && detail::RowPairsSegment::kCol == 1 &&
              detail::RowPairsSegment::kPairs == 2 && detail::RowPairsSegment::kCount == 3);

// Fitted on a 2-processor Emerald Rapids at 1024×1024, 50–95 % zeros, 16 to 256 tokens, 2026-11-30,
// within 15 % of the times, which were scaled to those of the kcsr rows' models (0.67 of what these
// rows take there): a model only ranks rows. A row in a block costs a kcsr row 20 to 25 cycles
// there, a pair's 1. The portable row is not fitted.
constexpr SpmmCost kGenericCost{2.0, 0.7, 16.0, 1.0};
constexpr SpmmCost kAvx2Cost64{0.37, 0.47, 1.3, 0.73};
constexpr SpmmCost kAvx2Cost128{0.51, 0.48, 0.9, 0.69};
constexpr SpmmCost kAvx512Cost64{0.87, 0.36, 0.1, 1.33};
constexpr SpmmCost kAvx512Cost128{1.05, 0.34, 1.1, 0.75};

template <const KcsrFunctions& functions, const SpmmCost& cost, Layout layout, int vectors>
void add_row(std::string_view name, std::uint32_t needs) {
  LinearKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = layout;
  kernel.weight_dtype = DType::kFloat32;
  kernel.activation_dtype = DType::kFloat32;
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return spmm_seconds(functions.vector_lanes, cost, vectors, detail::row_pairs_block(layout),
                        desc, tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) {
    run_spmm(functions, vectors, args,
             [&](std::int64_t batch) { return RowPairsSource(args.weight, batch); });
  };
  register_linear_kernel(kernel);
}

}  // namespace

void register_spmm_rowpairs() {
  using enum Layout;
  constexpr const KcsrFunctions& generic = generic_spmm_rowpairs_f32;
  add_row<generic, kGenericCost, kRowPairs64, 8>("generic_spmm_rowpairs64_f32", kIsaGeneric);
  add_row<generic, kGenericCost, kRowPairs128, 8>("generic_spmm_rowpairs128_f32", kIsaGeneric);
#if defined(__x86_64__)
  constexpr const KcsrFunctions& avx2 = avx2_spmm_rowpairs_f32;
  constexpr const KcsrFunctions& avx512 = avx512_spmm_rowpairs_f32;
  add_row<avx2, kAvx2Cost64, kRowPairs64, 8>("avx2_spmm_rowpairs64_f32_nv8", kIsaAvx2);
  add_row<avx2, kAvx2Cost128, kRowPairs128, 8>("avx2_spmm_rowpairs128_f32_nv8", kIsaAvx2);
  add_row<avx512, kAvx512Cost64, kRowPairs64, 8>("avx512_spmm_rowpairs64_f32_nv8", kIsaAvx512);
  add_row<avx512, kAvx512Cost128, kRowPairs128, 4>("avx512_spmm_rowpairs128_f32_nv4", kIsaAvx512);
#endif
}

}  // namespace gossamer::cpu
