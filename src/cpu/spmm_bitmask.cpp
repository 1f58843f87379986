// SPDX-License-Identifier: BSD-3-Clause
// The bitmask format as a source of K-blocked kernels, and their table rows.
//
// A row's values lie in the order of its columns, so the values of a block of inputs are a piece of
// it: what is missing are the columns. They are read off the bits once for every block of rows, 64
// bits in four cycles where vpcompressb is there, and serve all panels of tokens. So the format
// that is saved also runs, without a second copy, and the block of inputs is the kernel's choice.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/layouts.h"
#include "cpu/bitmask_rows.h"
#include "cpu/bitmask_units.h"
#include "cpu/registration.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

constexpr std::int64_t kIndexedAtOnce = std::int64_t{1} << 20;  ///< kept values: a byte each

using IndexFunction = void (*)(const BitmaskIndexTask&);

/// One batch of a packed weight.
struct BitmaskSource {
  BitmaskRows weight;
  IndexFunction index_rows;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;
  const std::byte* values = nullptr;  ///< of the indexed rows
  const std::uint8_t* cols = nullptr;
  const std::uint32_t* segments = nullptr;
  std::int64_t rows = 0;

  BitmaskSource(const PackedView& packed, std::int64_t batch, std::int64_t block_inputs,
                IndexFunction function)
      : weight(packed, batch),
        index_rows(function),
        out(packed.out()),
        in(packed.in()),
        block(block_inputs),
        block_count(ceil_div(in, block)) {}

  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    return weight.balanced_row(part, parts, 16);
  }

  std::int64_t rows_at_once(std::int64_t row, std::int64_t wanted) const {
    while (wanted > 1 && weight.kept(row, wanted) > kIndexedAtOnce) wanted /= 2;
    return wanted;
  }

  std::int64_t segment_bytes(std::int64_t count) const { return (block_count + 1) * count * 4; }

  std::int64_t scratch_bytes(std::int64_t row, std::int64_t count) const {
    return segment_bytes(count) + weight.kept(row, count) + 64;
  }

  void index(std::int64_t row, std::int64_t count, std::byte* memory) {
    auto* first_segment = reinterpret_cast<std::uint32_t*>(memory);
    auto* first_col = reinterpret_cast<std::uint8_t*>(memory + segment_bytes(count));
    index_rows({weight.bits + row * weight.row_bytes, count, in, block, first_col, first_segment});
    values = weight.row_values(row);
    cols = first_col;
    segments = first_segment;
    rows = count;
  }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task{};
    task.values = values;
    task.cols = cols;
    task.begins = segments + k * rows;
    task.ends = task.begins + rows;
    return task;
  }
};

// Fitted on zen5-avx512 at 1024×1024, 50–95 % zeros, 9 to 256 tokens, 2026-11-23; the fits are
// within 15 % of the times.
constexpr SpmmCost kAvx2Cost128{1.18, 0.51, 1.1, 1.20, 0.26};
constexpr SpmmCost kAvx2Cost256{0.66, 0.63, 15.5, 0.50, 0.22};
constexpr SpmmCost kAvx512Cost128{1.33, 0.58, 2.1, 0.98, 0.27};
constexpr SpmmCost kVbmi2Cost64{1.58, 0.57, 16.4, 0.86, 0.13};
constexpr SpmmCost kVbmi2HalfCost64{2.18, 0.47, 18.1, 0.73, 0.10};
constexpr SpmmCost kVbmi2Cost128{1.32, 0.58, 2.7, 0.94, 0.05};
constexpr SpmmCost kVbmi2Cost256{0.84, 0.83, 8.9, 0.51, 0.02};
constexpr SpmmCost kPairCost128{1.44, 0.54, 0.0, 1.50, 0.32};
constexpr SpmmCost kPairCost256{1.50, 0.49, 0.0, 0.90, 0.29};
constexpr SpmmCost kSmallPairCost{0.48, 0.49, 27.0, 0.28, 1.2};  // the last: emeraldrapids-avx2
constexpr SpmmCost kQuadCost256{1.11, 0.52, 3.7, 0.95, 0.27};
constexpr SpmmCost kQuadCost512{1.01, 0.52, 0.0, 0.50, 0.34};
constexpr SpmmCost kVbmi2HalfCost256{1.62, 0.59, 5.6, 0.70, 0.01};

template <const KcsrFunctions& functions, const SpmmCost& cost, IndexFunction index, int block,
          int vectors>
void add_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel = linear_row(name, needs, Layout::kBitmask, dtype);
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return spmm_seconds(functions.vector_lanes, cost, vectors, block, desc, tokens, threads);
  };
  kernel.run = [](const LinearArgs& args) {
    constexpr SplitCost kSplit{.per_position = cost.per_position};
    run_spmm(
        functions, vectors, args,
        [&](std::int64_t batch) { return BitmaskSource(args.weight, batch, block, index); },
        kSplit);
  };
  register_linear_kernel(kernel);
}

/// `inputs`: of a unit.
template <const KcsrFunctions& functions, typename Source, const SpmmCost& cost, int inputs,
          int block, int vectors>
void add_unit_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel = linear_row(name, needs, Layout::kBitmask, dtype);
  if (dtype == DType::kInt8) kernel.refuses = refuses_long_rows;
  kernel.seconds = [](const LinearDesc& desc, const Machine&, std::int64_t tokens, int threads) {
    return unit_seconds(functions.vector_lanes, cost, vectors, block, inputs, desc, tokens,
                        threads);
  };
  kernel.run = [](const LinearArgs& args) {
    // A kept value stands for part of a unit.
    constexpr SplitCost kSplit{
        .per_value = 1.4 / inputs, .per_vector = 0.7 / inputs, .per_position = cost.per_position};
    run_spmm(
        functions, vectors, args,
        [&](std::int64_t batch) { return Source(args.weight, batch, block); }, kSplit);
  };
  register_linear_kernel(kernel);
}

}  // namespace

void register_spmm_bitmask() {
#if defined(__x86_64__)
  using enum DType;
  constexpr std::uint32_t kVbmi2 = kIsaAvx512 | kIsaAvx512Vbmi2;
  constexpr IndexFunction by_table = avx2_bitmask_index;
  constexpr IndexFunction by_compress = avx512vbmi2_bitmask_index;
  add_row<avx2_spmm_f32, kAvx2Cost128, by_table, 128, 8>("avx2_spmm_bitmask128_f32_nv8", kIsaAvx2,
                                                         kFloat32);
  add_row<avx2_spmm_f32, kAvx2Cost256, by_table, 256, 8>("avx2_spmm_bitmask256_f32_nv8", kIsaAvx2,
                                                         kFloat32);
  add_row<avx2_spmm_bf16, kAvx2Cost128, by_table, 128, 8>("avx2_spmm_bitmask128_bf16_nv8", kIsaAvx2,
                                                          kBFloat16);
  add_row<avx2_spmm_bf16, kAvx2Cost256, by_table, 256, 8>("avx2_spmm_bitmask256_bf16_nv8", kIsaAvx2,
                                                          kBFloat16);
  add_row<avx2_spmm_f16, kAvx2Cost128, by_table, 128, 8>("avx2_spmm_bitmask128_f16_nv8", kIsaAvx2,
                                                         kFloat16);
  add_row<avx2_spmm_f16, kAvx2Cost256, by_table, 256, 8>("avx2_spmm_bitmask256_f16_nv8", kIsaAvx2,
                                                         kFloat16);

  add_row<avx512_spmm_f32, kAvx512Cost128, by_table, 128, 4>("avx512_spmm_bitmask128_f32_nv4",
                                                             kIsaAvx512, kFloat32);
  add_row<avx512_spmm_bf16, kAvx512Cost128, by_table, 128, 4>("avx512_spmm_bitmask128_bf16_nv4",
                                                              kIsaAvx512, kBFloat16);
  add_row<avx512_spmm_f16, kAvx512Cost128, by_table, 128, 4>("avx512_spmm_bitmask128_f16_nv4",
                                                             kIsaAvx512, kFloat16);

  add_row<avx512_spmm_f32, kVbmi2Cost64, by_compress, 64, 8>("avx512vbmi2_spmm_bitmask64_f32_nv8",
                                                             kVbmi2, kFloat32);
  add_row<avx512_spmm_f32, kVbmi2Cost128, by_compress, 128, 4>(
      "avx512vbmi2_spmm_bitmask128_f32_nv4", kVbmi2, kFloat32);
  add_row<avx512_spmm_f32, kVbmi2Cost256, by_compress, 256, 4>(
      "avx512vbmi2_spmm_bitmask256_f32_nv4", kVbmi2, kFloat32);
  add_row<avx512_spmm_bf16, kVbmi2HalfCost64, by_compress, 64, 8>(
      "avx512vbmi2_spmm_bitmask64_bf16_nv8", kVbmi2, kBFloat16);
  add_row<avx512_spmm_bf16, kVbmi2HalfCost256, by_compress, 256, 4>(
      "avx512vbmi2_spmm_bitmask256_bf16_nv4", kVbmi2, kBFloat16);
  add_row<avx512_spmm_f16, kVbmi2HalfCost64, by_compress, 64, 8>(
      "avx512vbmi2_spmm_bitmask64_f16_nv8", kVbmi2, kFloat16);
  add_row<avx512_spmm_f16, kVbmi2HalfCost256, by_compress, 256, 4>(
      "avx512vbmi2_spmm_bitmask256_f16_nv4", kVbmi2, kFloat16);
  using Pairs = BitmaskUnits<avx512bf16_bitmask_pairs>;
  constexpr std::uint32_t kBf16 = kVbmi2 | kIsaAvx512Bf16;
  add_unit_row<avx512bf16_spmm_pairs, Pairs, kPairCost128, 2, 128, 8>(
      "avx512bf16_spmm_bitmask128_bf16_nv8", kBf16, kBFloat16);
  add_unit_row<avx512bf16_spmm_pairs, Pairs, kPairCost256, 2, 256, 4>(
      "avx512bf16_spmm_bitmask256_bf16_nv4", kBf16, kBFloat16);

  using Quads = QuantizedBitmaskUnits<avx512vnni_bitmask_quads>;
  constexpr std::uint32_t kVnni = kVbmi2 | kIsaAvx512Vnni;
  add_unit_row<avx512vnni_spmm_quads, Quads, kQuadCost256, 4, 256, 8>(
      "avx512vnni_spmm_bitmask256_int8_nv8", kVnni, kInt8);
  add_unit_row<avx512vnni_spmm_quads, Quads, kQuadCost512, 4, 512, 4>(
      "avx512vnni_spmm_bitmask512_int8_nv4", kVnni, kInt8);

  using SmallPairs = QuantizedBitmaskUnits<avx2_bitmask_int8_pairs>;
  add_unit_row<avx2_spmm_int8_pairs, SmallPairs, kSmallPairCost, 2, 256, 8>(
      "avx2_spmm_bitmask256_int8_nv8", kIsaAvx2, kInt8);
#endif
}

}  // namespace gossamer::cpu
