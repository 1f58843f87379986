// SPDX-License-Identifier: BSD-3-Clause
// The bsr format as a source of K-blocked kernels, and their table rows: blocks of any size.
//
// All block rows of a tile are a product of small dense blocks; the blocks of one row that lie in
// a tile follow each other in memory, so the index is one pass over the block columns.
#include <algorithm>
#include <cstdint>
#include <string>

#include "core/layouts.h"
#include "cpu/block_source.h"
#include "cpu/registration.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

/// Blocks of one row and 32 bits, 1×2 of bfloat16 and 1×4 of int8, are the units of
/// avx512bf16_spmm_pairs and avx512vnni_spmm_quads as they lie in memory; only their columns are
/// shortened to a byte.
struct UnitSource {
  BlockSource blocks;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;
  const std::uint8_t* cols = nullptr;

  UnitSource(const PackedView& packed, std::int64_t batch, std::int64_t wanted_inputs)
      : blocks(packed, batch, wanted_inputs),
        out(blocks.out),
        in(blocks.in),
        block(blocks.block),
        block_count(blocks.block_count) {}

  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    return blocks.balanced_row(part, parts);
  }
  static std::int64_t rows_at_once(std::int64_t, std::int64_t wanted) { return wanted; }

  std::int64_t units(std::int64_t row, std::int64_t rows) const {
    return blocks.row_offsets[row + rows] - blocks.row_offsets[row];
  }
  std::int64_t scratch_bytes(std::int64_t row, std::int64_t rows) const {
    return blocks.scratch_bytes(row, rows) + units(row, rows) + 16;
  }

  void index(std::int64_t row, std::int64_t rows, std::byte* memory) {
    auto* segments = reinterpret_cast<std::uint32_t*>(memory);
    auto* to = reinterpret_cast<std::uint8_t*>(memory + blocks.scratch_bytes(row, rows));
    avx512_block_index({blocks.row_offsets + row, blocks.cols, rows, block_count,
                        block / blocks.block_cols, to, segments});
    blocks.first_block = blocks.row_offsets[row];
    blocks.indexed = rows;
    blocks.segments = segments;
    cols = to;
  }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task = blocks.add_task(k);
    task.cols = cols;
    return task;
  }
};

/// Adds the sums of rows that quantized calls subtract; a word a row lies behind the segments.
template <typename Source>
struct Corrected : Source {
  using Source::Source;
  const std::int32_t* corrections = nullptr;

  static const BlockSource& blocks_of(const BlockSource& source) { return source; }
  static const BlockSource& blocks_of(const UnitSource& source) { return source.blocks; }

  std::int64_t scratch_bytes(std::int64_t row, std::int64_t rows) const {
    return Source::scratch_bytes(row, rows) + 4 * rows;
  }

  void index(std::int64_t row, std::int64_t rows, std::byte* memory) {
    const BlockSource& source = blocks_of(*this);
    auto* sums = reinterpret_cast<std::int32_t*>(memory);
    Source::index(row, rows, memory + 4 * rows);
    avx512vnni_block_sums({reinterpret_cast<const std::int8_t*>(source.values),
                           source.row_offsets + row / source.block_rows, source.block_rows,
                           source.block_cols, rows, sums});
    corrections = sums;
  }
};

/// The widest panel whose sums leave room for four rows at once, or two.
int widest_panel(const KcsrFunctions& functions, std::int64_t block_rows) {
  if (functions.vector_lanes == 16) return block_rows % 4 == 0 || block_rows > 8 ? 6 : 8;
  return block_rows % 2 == 0 || block_rows > 8 ? 6 : 8;
}

/// Rows that share a load of the tile.
double shared_rows(const KcsrFunctions& functions, std::int64_t block_rows) {
  if (functions.vector_lanes == 16 && (block_rows % 4 == 0 || block_rows > 8)) return 4.0;
  return block_rows % 2 == 0 || block_rows > 8 ? 2.0 : 1.0;
}

/// Cycles that the model charges for a unit (an element or a pair) of the kept blocks.
struct Cost {
  std::int64_t tile_inputs;
  double inputs;      ///< of a unit
  double per_unit;    ///< a broadcast
  double per_block;   ///< a row of one: loops
  double per_vector;  ///< a multiply-add
  double per_load;    ///< of a vector of the tile, shared by a group of rows
};

// Fitted on zen5-avx512 at 1024×1024, blocks of 1×2 to 64×64, 2026-11-23.
constexpr Cost kAvx2Cost{128, 1.0, 0.3, 8.0, 0.5, 0.4};
constexpr Cost kAvx512Cost{64, 1.0, 0.3, 8.0, 0.5, 0.4};
constexpr Cost kPairCost{128, 2.0, 0.3, 8.0, 0.5, 0.4};
constexpr Cost kQuadCost{256, 4.0, 0.3, 8.0, 0.5, 0.4};

double seconds(const KcsrFunctions& functions, const Cost& cost, const LinearDesc& desc,
               std::int64_t tokens, int threads) {
  constexpr double kHertz = 3.5e9;
  constexpr double kBytesPerCycle = 8.0;
  constexpr double kPerTransposed = 0.9;
  const double positions = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                           static_cast<double>(desc.in);
  const double kept = positions * desc.density;
  const std::int64_t rows = desc.pattern.block_rows;
  const double group = shared_rows(functions, rows);
  const auto lanes = static_cast<double>(functions.vector_lanes);
  const double block_rows = kept / static_cast<double>(desc.pattern.block_cols);
  double cycles = 0.0;
  for (std::int64_t left = tokens; left > 0;) {
    const int width = panel_width(left, functions.vector_lanes, widest_panel(functions, rows));
    const double vectors = kPanelVectors[width];
    cycles +=
        kept / cost.inputs * (cost.per_unit + vectors * (cost.per_vector + cost.per_load / group)) +
        block_rows * cost.per_block / group +
        static_cast<double>(desc.batch * (desc.in + desc.out)) * vectors * lanes * kPerTransposed;
    left -= kPanelVectors[width] * functions.vector_lanes;
  }
  const double memory = kept * static_cast<double>(dtype_bytes(desc.weight_dtype)) / kBytesPerCycle;
  const double work = kept * static_cast<double>(ceil_div(tokens, functions.vector_lanes));
  const double used =
      std::clamp(work / static_cast<double>(kMinWorkPerThread), 1.0, std::max(threads, 1) * 1.0);
  return std::max(cycles, memory) / (kHertz * used);
}

std::string refuses_tall(const LinearDesc& desc) {
  if (desc.pattern.block_rows <= kMaxBlockRows) return {};
  return "takes blocks of at most 256 rows, these have " + std::to_string(desc.pattern.block_rows);
}

std::string refuses_odd(const LinearDesc& desc) {
  if (desc.pattern.block_cols % 2 == 0) return refuses_tall(desc);
  return "takes blocks of an even number of columns, these have " +
         std::to_string(desc.pattern.block_cols);
}

std::string refuses_no_fours(const LinearDesc& desc) {
  if (desc.pattern.block_cols % 4 != 0) {
    return "takes blocks of a number of columns that four divides, these have " +
           std::to_string(desc.pattern.block_cols);
  }
  const std::string refusal = refuses_long_rows(desc);
  return refusal.empty() ? refuses_tall(desc) : refusal;
}

template <const KcsrFunctions& functions, typename Source, const Cost& cost>
void add_row(std::string_view name, std::uint32_t needs, DType dtype,
             std::string (*refuses)(const LinearDesc&)) {
  LinearKernel kernel = linear_row(name, needs, Layout::kBsr, dtype);
  kernel.refuses = refuses;
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return seconds(functions, cost, desc, tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) {
    constexpr SplitCost kSplit{0.4 / cost.inputs, 0.6 / cost.inputs};
    run_spmm(
        functions, widest_panel(functions, args.weight.header().block_rows), args,
        [&](std::int64_t batch) { return Source(args.weight, batch, cost.tile_inputs); }, kSplit);
  };
  register_linear_kernel(kernel);
}

// 64 units and 128 tokens, or 128 and 64, are 32 KB. The former broadcasts half as often, the
// latter loads and stores sums half as often, which counts where rows keep little of a tile.
constexpr SpmmCost kUnitCost{1.44, 0.54, 2.0, 1.50};

/// Blocks of one row and 32 bits.
std::string refuses_other_units(const LinearDesc& desc) {
  const std::int64_t inputs = 4 / dtype_bytes(desc.weight_dtype);
  if (desc.pattern.block_rows == 1 && desc.pattern.block_cols == inputs) {
    return desc.weight_dtype == DType::kInt8 ? refuses_long_rows(desc) : std::string();
  }
  return "takes blocks of 1x" + std::to_string(inputs) + ", not " + desc.pattern.to_string();
}

template <const KcsrFunctions& functions, typename Source, int units_per_tile, int vectors>
void add_unit_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel;
  kernel.name = name;
  kernel.needs = kIsaAvx512 | kIsaAvx512Vbmi2 | needs;
  kernel.layout = Layout::kBsr;
  kernel.weight_dtype = dtype;
  kernel.activation_dtype = dtype;
  kernel.refuses = refuses_other_units;
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    const std::int64_t inputs = 4 / dtype_bytes(desc.weight_dtype);
    LinearDesc units = desc;
    units.in = ceil_div(desc.in, inputs);
    return spmm_seconds(functions.vector_lanes, kUnitCost, vectors, units_per_tile, units, tokens,
                        threads);
  };
  kernel.run = [](const LinearArgs& args) {
    const std::int64_t inputs = 4 / dtype_bytes(args.weight.dtype());
    const auto each = static_cast<double>(inputs);
    run_spmm(
        functions, vectors, args,
        [&](std::int64_t batch) { return Source(args.weight, batch, units_per_tile * inputs); },
        {1.1 / each, 0.55 / each});
  };
  register_linear_kernel(kernel);
}

}  // namespace

void register_spmm_blocks() {
#if defined(__x86_64__)
  using enum DType;
  add_row<avx2_spmm_blocks_f32, BlockSource, kAvx2Cost>("avx2_spmm_bsr_f32", kIsaAvx2, kFloat32,
                                                        refuses_tall);
  add_row<avx2_spmm_blocks_bf16, BlockSource, kAvx2Cost>("avx2_spmm_bsr_bf16", kIsaAvx2, kBFloat16,
                                                         refuses_tall);
  add_row<avx2_spmm_blocks_f16, BlockSource, kAvx2Cost>("avx2_spmm_bsr_f16", kIsaAvx2, kFloat16,
                                                        refuses_tall);
  add_row<avx512_spmm_blocks_f32, BlockSource, kAvx512Cost>("avx512_spmm_bsr_f32", kIsaAvx512,
                                                            kFloat32, refuses_tall);
  add_row<avx512_spmm_blocks_bf16, BlockSource, kAvx512Cost>("avx512_spmm_bsr_bf16", kIsaAvx512,
                                                             kBFloat16, refuses_tall);
  add_row<avx512_spmm_blocks_f16, BlockSource, kAvx512Cost>("avx512_spmm_bsr_f16", kIsaAvx512,
                                                            kFloat16, refuses_tall);
  add_row<avx512bf16_spmm_block_pairs, BlockSource, kPairCost>(
      "avx512bf16_spmm_bsr_bf16", kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Bf16, kBFloat16,
      refuses_odd);
  add_row<avx512vnni_spmm_block_quads, Corrected<BlockSource>, kQuadCost>(
      "avx512vnni_spmm_bsr_int8", kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni, kInt8,
      refuses_no_fours);
  add_unit_row<avx512bf16_spmm_pairs, UnitSource, 64, 8>("avx512bf16_spmm_bsr1x2_bf16_nv8",
                                                         kIsaAvx512Bf16, kBFloat16);
  add_unit_row<avx512bf16_spmm_pairs, UnitSource, 128, 4>("avx512bf16_spmm_bsr1x2_bf16_nv4",
                                                          kIsaAvx512Bf16, kBFloat16);
  add_unit_row<avx512vnni_spmm_quads, Corrected<UnitSource>, 64, 8>(
      "avx512vnni_spmm_bsr1x4_int8_nv8", kIsaAvx512Vnni, kInt8);
  add_unit_row<avx512vnni_spmm_quads, Corrected<UnitSource>, 128, 4>(
      "avx512vnni_spmm_bsr1x4_int8_nv4", kIsaAvx512Vnni, kInt8);
#endif
}

}  // namespace gossamer::cpu
