// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/layouts.h"
#include "cpu/bitmask_rows.h"
#include "cpu/block_source.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

// Table rows of kernels on tile registers, and the bitmask format as their source. Templates over
// the functions, so that the tests run the same code on a model of the registers.
namespace gossamer::cpu {

inline constexpr std::int64_t kTileGroup = 16;  ///< rows of a tile
inline constexpr std::int64_t kTileLine = 64;   ///< bytes of its rows

/// One batch of a bitmask weight whose values are expanded by the kernel.
struct TileSource {
  using Count = void (*)(const BitmaskIndexTask&);

  BitmaskRows weight;
  Count count_kept;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;
  const std::uint32_t* segments = nullptr;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;

  /// `block_inputs`: a multiple of 64, or 0 for all of them.
  TileSource(const PackedView& packed, std::int64_t batch, std::int64_t block_inputs,
             Count function)
      : weight(packed, batch),
        count_kept(function),
        out(packed.out()),
        in(packed.in()),
        block(block_inputs == 0 ? detail::ceil_div(in, kTileLine) * kTileLine : block_inputs),
        block_count(detail::ceil_div(in, block)) {}

  /// At a group of rows, so that at most the last tile has fewer.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    const std::int64_t row = weight.balanced_row(part, parts, 16);
    return std::min(detail::ceil_div(row, kTileGroup) * kTileGroup, out);
  }

  std::int64_t rows_at_once(std::int64_t, std::int64_t wanted) const {
    return wanted < kTileGroup ? wanted : wanted / kTileGroup * kTileGroup;
  }

  std::int64_t scratch_bytes(std::int64_t, std::int64_t count) const {
    return (block_count + 1) * count * 4;
  }

  void index(std::int64_t row, std::int64_t count, std::byte* memory) {
    auto* to = reinterpret_cast<std::uint32_t*>(memory);
    count_kept({weight.bits + row * weight.row_bytes, count, in, block, nullptr, to});
    segments = to;
    first_row = row;
    rows = count;
  }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task{};
    task.values = weight.row_values(first_row);
    task.begins = segments + k * rows;
    task.ends = task.begins + rows;
    task.first_input = k * block;
    task.bits = weight.bits + first_row * weight.row_bytes;
    task.row_bytes = weight.row_bytes;
    task.in = in;
    return task;
  }
};

/// Products of signed bytes need no corrections; that there is a place for them makes the call a
/// quantized one.
template <typename Source>
struct Uncorrected : Source {
  using Source::Source;
  const std::int32_t* corrections = nullptr;
};

/// Cycles: a product of tiles, expanding one, transposing a 32-bit element of X or Y, and loading
/// and storing a tile of sums.
struct TileCost {
  double product = 16.0;
  double expand = 40.0;
  double transposed = 0.6;
  double sums = 24.0;
};

/// Of a kept value, of which a tile has hundreds.
inline constexpr SplitCost kTileSplit{0.1, 0.04};

/// Predicted seconds of one call. `computed`: the share of tiles that is multiplied; `expands`: the
/// weights are expanded for every panel.
inline double tile_seconds(const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                           int threads, std::int64_t block, int vectors, double computed,
                           bool expands) {
  constexpr TileCost kCost{};
  constexpr double kHertz = 3.0e9;
  constexpr double kMemoryBytesPerCycle = 4.0;
  constexpr double kCacheBytesPerCycle = 16.0;
  const std::int64_t bytes = dtype_bytes(desc.weight_dtype);
  const auto batch = static_cast<double>(desc.batch);
  const std::int64_t groups = detail::ceil_div(desc.out, kTileGroup);
  const double tiles =
      batch * static_cast<double>(groups * detail::ceil_div(desc.in * bytes, kTileLine));
  const std::int64_t blocks = block == 0 ? 1 : detail::ceil_div(desc.in, block);
  const double kept_bytes =
      batch * static_cast<double>(desc.out * desc.in) * desc.density * static_cast<double>(bytes);
  double cycles = 0.0;
  for (std::int64_t left = tokens; left > 0;) {
    const int width = panel_width(left, kTileGroup, vectors);
    const double used = kPanelVectors[width];
    cycles += tiles * (computed * used * kCost.product + (expands ? kCost.expand : 0.0)) +
              batch * static_cast<double>(groups * blocks) * used * kCost.sums +
              batch * static_cast<double>(desc.in * bytes / 4 + desc.out) * used * 16.0 *
                  kCost.transposed;
    left -= kPanelVectors[width] * kTileGroup;
  }
  const double rate = kept_bytes > static_cast<double>(machine.l3_bytes) ? kMemoryBytesPerCycle
                                                                         : kCacheBytesPerCycle;
  const double work = kept_bytes * static_cast<double>(detail::ceil_div(tokens, kTileGroup));
  const double used =
      std::clamp(work / static_cast<double>(kMinWorkPerThread), 1.0, std::max(threads, 1) * 1.0);
  return std::max(cycles, kept_bytes / rate) / (kHertz * used);
}

inline std::string refuses_long_int8_rows(const LinearDesc& desc) {
  return desc.weight_dtype == DType::kInt8 ? refuses_long_rows(desc) : std::string();
}

/// Blocks that are not whole tiles.
inline std::string refuses_part_tiles(const LinearDesc& desc) {
  const std::int64_t line = kTileLine / dtype_bytes(desc.weight_dtype);
  if (desc.pattern.block_rows % kTileGroup == 0 && desc.pattern.block_cols % line == 0 &&
      desc.pattern.block_rows <= kMaxBlockRows) {
    return refuses_long_int8_rows(desc);
  }
  return "takes blocks of whole tiles of 16x" + std::to_string(line) + " and at most " +
         std::to_string(kMaxBlockRows) + " rows, not " + desc.pattern.to_string();
}

/// `block`: inputs of a tile of X, 0 for all of them; `vectors`: the widest panel.
template <const KcsrFunctions& functions, TileSource::Count count, int block, int vectors>
void add_bitmask_tile_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = Layout::kBitmask;
  kernel.weight_dtype = dtype;
  kernel.activation_dtype = dtype;
  kernel.refuses = refuses_long_int8_rows;
  kernel.seconds = [](const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                      int threads) {
    return tile_seconds(desc, machine, tokens, threads, block, vectors, 1.0, true);
  };
  kernel.run = [](const LinearArgs& args) {
    if (args.x_scale == nullptr) {
      run_spmm(functions, vectors, args,
               [&](std::int64_t batch) { return TileSource(args.weight, batch, block, count); });
    } else {
      run_spmm(
          functions, vectors, args,
          [&](std::int64_t batch) {
            return Uncorrected<TileSource>(args.weight, batch, block, count);
          },
          kTileSplit);
    }
  };
  register_linear_kernel(kernel);
}

template <const KcsrFunctions& functions, int block, int vectors>
void add_block_tile_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = Layout::kBsr;
  kernel.weight_dtype = dtype;
  kernel.activation_dtype = dtype;
  kernel.refuses = refuses_part_tiles;
  kernel.seconds = [](const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                      int threads) {
    return tile_seconds(desc, machine, tokens, threads, block, vectors, desc.density, false);
  };
  kernel.run = [](const LinearArgs& args) {
    const std::int64_t all = args.weight.in() + args.weight.header().block_cols;
    const std::int64_t inputs = block == 0 ? all : block;
    if (args.x_scale == nullptr) {
      run_spmm(
          functions, vectors, args,
          [&](std::int64_t batch) { return BlockSource(args.weight, batch, inputs); }, kTileSplit);
    } else {
      run_spmm(
          functions, vectors, args,
          [&](std::int64_t batch) { return Uncorrected<BlockSource>(args.weight, batch, inputs); },
          kTileSplit);
    }
  };
  register_linear_kernel(kernel);
}

}  // namespace gossamer::cpu
