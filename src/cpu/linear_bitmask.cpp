// SPDX-License-Identifier: BSD-3-Clause
// Table rows of *_linear_bitmask_*: the bitmask format for a few tokens.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/layouts.h"
#include "cpu/bitmask_rows.h"
#include "cpu/decode_driver.h"
#include "cpu/registration.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

/// Cycles that the model charges for a step of `columns` positions.
struct Cost {
  double columns;
  double per_step;
  double per_token;
};

// Fitted on zen5-avx512 at 1024×1024 and 4096×4096, 50–95 % zeros, 2026-11-23; kAvx2Cost,
// kAvx512Cost and kInt8Cost on a 2-processor Emerald Rapids at 768×768 and 1024×1024, 1 to 8
// tokens, 2026-11-30, within 15 % of the times, scaled as those of row pairs are
// (spmm_rowpairs.cpp).
constexpr Cost kAvx2Cost{8.0, 1.2, 0.43};
constexpr Cost kAvx2HalfCost{8.0, 1.9, 0.42};
constexpr Cost kAvx512Cost{16.0, 1.7, 0.37};
constexpr Cost kAvx2Int8Cost{16.0, 4.0, 0.8};
constexpr Cost kInt8Cost{64.0, 1.9, 0.57};
constexpr Cost kBf16Cost{32.0, 2.8, 0.5};

double seconds(const LinearDesc& desc, const Machine& machine, std::int64_t tokens, int threads,
               const Cost& cost) {
  constexpr double kHertz = 3.5e9;
  constexpr double kMemoryBytesPerCycle = 8.0;
  constexpr double kCacheBytesPerCycle = 20.0;
  constexpr double kPerResult = 1.0;  // its lanes are added up, and it is stored
  const double positions = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                           static_cast<double>(desc.in);
  const double groups = static_cast<double>(ceil_div(tokens, kDecodeTokens));
  const double compute =
      positions / cost.columns *
          (cost.per_step * groups + cost.per_token * static_cast<double>(tokens)) +
      static_cast<double>(desc.batch * desc.out * tokens) * kPerResult;
  const double bytes =
      positions * (desc.density * static_cast<double>(dtype_bytes(desc.weight_dtype)) + 0.125);
  const double rate =
      bytes > static_cast<double>(machine.l3_bytes) ? kMemoryBytesPerCycle : kCacheBytesPerCycle;
  const double used = std::clamp(positions / static_cast<double>(kMinPositionsPerThread), 1.0,
                                 std::max(threads, 1) * 1.0);
  return std::max(compute, groups * bytes / rate) / (kHertz * used);
}

template <const DecodeFunctions& functions, const Cost& cost>
void add_row(std::string_view name, std::uint32_t needs, DType dtype,
             std::string (*refuses)(const LinearDesc&) = nullptr) {
  LinearKernel kernel;
  kernel.refuses = refuses;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = Layout::kBitmask;
  kernel.weight_dtype = dtype;
  kernel.activation_dtype = dtype;
  kernel.seconds = [](const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                      int threads) { return seconds(desc, machine, tokens, threads, cost); };
  kernel.run = [](const LinearArgs& args) { run_decode<BitmaskRows>(functions, args); };
  register_linear_kernel(kernel);
}

}  // namespace

void register_linear_bitmask() {
#if defined(__x86_64__)
  using enum DType;
  add_row<avx2_linear_bitmask_f32, kAvx2Cost>("avx2_linear_bitmask_f32", kIsaAvx2, kFloat32);
  add_row<avx2_linear_bitmask_bf16, kAvx2HalfCost>("avx2_linear_bitmask_bf16", kIsaAvx2, kBFloat16);
  add_row<avx2_linear_bitmask_f16, kAvx2HalfCost>("avx2_linear_bitmask_f16", kIsaAvx2, kFloat16);
  add_row<avx2_linear_bitmask_int8, kAvx2Int8Cost>("avx2_linear_bitmask_int8", kIsaAvx2, kInt8,
                                                   refuses_long_rows);
  add_row<avx512_linear_bitmask_f32, kAvx512Cost>("avx512_linear_bitmask_f32", kIsaAvx512,
                                                  kFloat32);
  add_row<avx512_linear_bitmask_bf16, kAvx512Cost>("avx512_linear_bitmask_bf16", kIsaAvx512,
                                                   kBFloat16);
  add_row<avx512_linear_bitmask_f16, kAvx512Cost>("avx512_linear_bitmask_f16", kIsaAvx512,
                                                  kFloat16);
  add_row<avx512bf16_linear_bitmask_bf16, kBf16Cost>(
      "avx512bf16_linear_bitmask_bf16", kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Bf16, kBFloat16);
  add_row<avx512vnni_linear_bitmask_int8, kInt8Cost>("avx512vnni_linear_bitmask_int8",
                                                     kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni,
                                                     kInt8, refuses_long_rows);
#endif
}

}  // namespace gossamer::cpu
