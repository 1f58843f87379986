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

// PROVISIONAL
constexpr SpmmCost kGenericCost{2.0, 0.7, 10.0, 1.0};
constexpr SpmmCost kAvx2Cost64{0.9, 0.45, 4.0, 1.27};
constexpr SpmmCost kAvx2Cost128{0.8, 0.45, 0.0, 1.27};
constexpr SpmmCost kAvx512Cost64{1.0, 0.45, 12.0, 0.96};
constexpr SpmmCost kAvx512Cost128{1.0, 0.45, 5.2, 1.02};

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
