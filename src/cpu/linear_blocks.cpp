// SPDX-License-Identifier: BSD-3-Clause
// Table rows of *_linear_bsr_*: the bsr format for a few tokens.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/layouts.h"
#include "cpu/decode_driver.h"
#include "cpu/registration.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

using detail::BsrArrays;
using detail::ceil_div;

/// One batch of a packed weight.
struct BlockRows {
  const std::byte* values;
  const std::int64_t* offsets;  ///< [block rows + 1]
  const std::int32_t* cols;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block_rows;
  std::int64_t block_cols;

  BlockRows(const PackedView& packed, std::int64_t batch)
      : values(packed.array(BsrArrays::kValues)),
        cols(packed.array<std::int32_t>(BsrArrays::kBlockCols)),
        out(packed.out()),
        in(packed.in()),
        block_rows(packed.header().block_rows),
        block_cols(packed.header().block_cols) {
    offsets = packed.array<std::int64_t>(BsrArrays::kBlockRowOffsets) +
              batch * (ceil_div(out, block_rows) + 1);
  }

  void place(std::int64_t row, DecodeTask& task) const {
    task.block_offsets = offsets;
    task.block_col = cols;
    task.block_rows = block_rows;
    task.block_cols = block_cols;
    task.first_row = row;
  }

  /// The first row of a part, so that parts have about equally many blocks, at a block row.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts, std::int64_t) const {
    if (part == 0 || part == parts) return part == 0 ? 0 : out;
    const std::int64_t count = ceil_div(out, block_rows);
    const std::int64_t target = offsets[0] + (offsets[count] - offsets[0]) * part / parts;
    const auto at = std::lower_bound(offsets, offsets + count, target);
    return std::min((at - offsets) * block_rows, out);
  }
};

/// Cycles that the model charges for one row of one block.
struct Cost {
  double columns;    ///< of a step
  double per_row;    ///< loops
  double per_sum;    ///< loading and storing the sum of a token
  double per_step;   ///< loading weights
  double per_token;  ///< a multiply-add
};

// Fitted on zen5-avx512 at 1024×1024, blocks of 32×32 and 64×64, 2026-11-23.
constexpr Cost kAvx2Cost{8.0, 1.5, 1.3, 0.8, 0.3};
constexpr Cost kAvx512Cost{16.0, 1.5, 1.3, 0.8, 0.1};
constexpr Cost kBf16Cost{32.0, 1.5, 1.3, 0.8, 0.1};
constexpr Cost kInt8Cost{64.0, 1.5, 1.3, 0.8, 0.1};

double seconds(const LinearDesc& desc, const Machine& machine, std::int64_t tokens, int threads,
               const Cost& cost) {
  constexpr double kHertz = 3.5e9;
  constexpr double kMemoryBytesPerCycle = 8.0;
  constexpr double kCacheBytesPerCycle = 30.0;
  const double positions = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                           static_cast<double>(desc.in);
  const auto columns = static_cast<double>(desc.pattern.block_cols);
  const double block_rows = positions * desc.density / std::max(columns, 1.0);
  const auto groups = static_cast<double>(ceil_div(tokens, kDecodeTokens));
  const double steps = std::max(1.0, columns / cost.columns);
  const double each = static_cast<double>(tokens) * (cost.per_sum + steps * cost.per_token) +
                      groups * (cost.per_row + steps * cost.per_step);
  const double bytes =
      positions * desc.density * static_cast<double>(dtype_bytes(desc.weight_dtype));
  const double rate =
      bytes > static_cast<double>(machine.l3_bytes) ? kMemoryBytesPerCycle : kCacheBytesPerCycle;
  const double used = std::clamp(positions / static_cast<double>(kMinPositionsPerThread), 1.0,
                                 std::max(threads, 1) * 1.0);
  return std::max(block_rows * each, groups * bytes / rate) / (kHertz * used);
}

std::string refuses(const LinearDesc& desc) {
  return desc.weight_dtype == DType::kInt8 ? refuses_long_rows(desc) : std::string();
}

template <const DecodeFunctions& functions, const Cost& cost>
void add_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel = linear_row(name, needs, Layout::kBsr, dtype);
  kernel.refuses = refuses;
  kernel.seconds = [](const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                      int threads) { return seconds(desc, machine, tokens, threads, cost); };
  kernel.run = [](const LinearArgs& args) { run_decode<BlockRows>(functions, args); };
  register_linear_kernel(kernel);
}

}  // namespace

void register_linear_blocks() {
#if defined(__x86_64__)
  using enum DType;
  constexpr std::uint32_t kVbmi2 = kIsaAvx512 | kIsaAvx512Vbmi2;
  add_row<avx2_linear_bsr_f32, kAvx2Cost>("avx2_linear_bsr_f32", kIsaAvx2, kFloat32);
  add_row<avx2_linear_bsr_bf16, kAvx2Cost>("avx2_linear_bsr_bf16", kIsaAvx2, kBFloat16);
  add_row<avx2_linear_bsr_f16, kAvx2Cost>("avx2_linear_bsr_f16", kIsaAvx2, kFloat16);
  add_row<avx512_linear_bsr_f32, kAvx512Cost>("avx512_linear_bsr_f32", kIsaAvx512, kFloat32);
  add_row<avx512_linear_bsr_bf16, kAvx512Cost>("avx512_linear_bsr_bf16", kIsaAvx512, kBFloat16);
  add_row<avx512_linear_bsr_f16, kAvx512Cost>("avx512_linear_bsr_f16", kIsaAvx512, kFloat16);
  add_row<avx512bf16_linear_bsr_bf16, kBf16Cost>("avx512bf16_linear_bsr_bf16",
                                                 kVbmi2 | kIsaAvx512Bf16, kBFloat16);
  add_row<avx512vnni_linear_bsr_int8, kInt8Cost>("avx512vnni_linear_bsr_int8",
                                                 kVbmi2 | kIsaAvx512Vnni, kInt8);
#endif
}

}  // namespace gossamer::cpu
