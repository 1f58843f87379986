// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "cpu/registration.h"
#include "cpu/spmm_driver.h"
#include "cpu/tile_blocks_task.h"
#include "cpu/tile_rows.h"
#include "gossamer/linear.h"

// Threads, cost and table rows of amx_linear_bsr_*: blocks of whole pieces of 32 rows by 64 bytes,
// multiplied on tile registers with X as the left operand. Templates over the function, so that the
// tests run the same code on a model of the registers.
namespace gossamer::cpu {

/// What a task needs of scratch: for two bands of 32 rows, pieces that are turned, with an input
/// and a source each; sums of a pair of token tiles; X in tiles.
inline std::int64_t tile_blocks_bytes(std::int64_t pieces, std::int64_t tokens,
                                      std::int64_t x_row_bytes) {
  const std::int64_t lines = detail::ceil_div(x_row_bytes, kPieceLine);
  return 2 * pieces * (kPieceBytes + 16) + kPairTokens * kPieceRows * 4 +
         detail::ceil_div(tokens, kTileGroup) * kTileGroup * kPieceLine * lines;
}

/// Cycles: of turning a piece, of a product of tiles and of one that waits for the sum before it,
/// of a result, of copying an element of X. On the scale of TileCost, so that plans time the rows
/// of both: waiting for L2 and L3 is in neither (in whole calls without a tile unit a piece took
/// 250 to 350 cycles; Emerald Rapids, 2026-11-30).
struct TileBlocksCost {
  double turn = 120.0;
  double product = 20.0;
  double lone_product = 26.0;
  double result = 0.4;
  double input = 0.15;
};

/// Of a kept value of bfloat16, of which a piece has 1024, and of reading an element of X.
inline constexpr SplitCost kTileBlocksSplit{0.1, 0.04, 0.3};

/// Bytes of X that one pass over the weight reads again and again: half an L2.
inline constexpr std::int64_t kPassBytes = std::int64_t{1} << 20;

/// Tokens that pieces are turned for once.
inline std::int64_t pass_tokens(std::int64_t x_row_bytes) {
  const std::int64_t pairs = kPassBytes / (x_row_bytes * kPairTokens);
  return std::max(pairs, std::int64_t{4}) * kPairTokens;
}

/// One batch of a packed weight.
class TileBlocks {
 public:
  TileBlocks(const PackedView& packed, std::int64_t batch)
      : blocks_(packed, batch, packed.header().block_cols),
        rows_(detail::ceil_div(blocks_.out, blocks_.block_rows)) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t kept = blocks_.row_offsets[row + 1] - blocks_.row_offsets[row];
      most_pieces_ = std::max(most_pieces_, kept * lines());
    }
  }

  /// The first row of part `part` of `parts`, at a block row. What follows the sums takes as long
  /// as a few pieces, and rows that keep nothing have it too.
  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    if (part == 0 || part == parts) return part == 0 ? 0 : blocks_.out;
    const std::int64_t target = cost_before(rows_) * part / parts;
    std::int64_t low = 0;
    for (std::int64_t high = rows_; low < high;) {
      const std::int64_t middle = (low + high) / 2;
      if (cost_before(middle) < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return std::min(low * blocks_.block_rows, blocks_.out);
  }

  /// A task but for X, scratch and what follows.
  TileBlocksTask task(std::int64_t row) const {
    TileBlocksTask task{};
    task.values = blocks_.values;
    task.offsets = blocks_.row_offsets + row / blocks_.block_rows;
    task.cols = blocks_.cols;
    task.block_rows = blocks_.block_rows;
    task.block_cols = blocks_.block_cols;
    task.in = blocks_.in;
    task.pieces = detail::ceil_div(std::max(most_pieces_, std::int64_t{2}), 2) * 2;
    return task;
  }

  std::int64_t x_row_bytes() const { return blocks_.in * blocks_.value_bytes; }

 private:
  static constexpr std::int64_t kResultsInPieces = 4;

  /// Pieces of a block side by side.
  std::int64_t lines() const { return blocks_.block_cols * blocks_.value_bytes / kPieceLine; }

  std::int64_t cost_before(std::int64_t row) const {
    return (blocks_.row_offsets[row] - blocks_.row_offsets[0]) * lines() + row * kResultsInPieces;
  }

  BlockSource blocks_;
  std::int64_t rows_;  ///< of blocks
  std::int64_t most_pieces_ = 0;
};

/// What one thread does of one batch.
inline void run_tile_blocks_part(void (*multiply)(const TileBlocksTask&), const TileBlocks& weight,
                                 const SpmmCall& call, const SpmmPart& part) {
  if (part.row_begin >= part.row_end) return;
  TileBlocksTask task = weight.task(part.row_begin);
  const std::int64_t all = part.token_end - part.token_begin;
  const std::int64_t step = std::min(pass_tokens(weight.x_row_bytes()), all);
  task.x_stride = call.x_stride();
  task.scratch = scratch(tile_blocks_bytes(task.pieces, step, weight.x_row_bytes()) / 4);
  task.weight_scale = call.weight_scale(part.row_begin);
  for (std::int64_t token = part.token_begin; token < part.token_end; token += step) {
    const std::int64_t tokens = std::min(step, part.token_end - token);
    task.x = call.x(token, 0);
    task.x_scale = call.x_scale(token);
    task.out = call.finish(token, tokens, part.row_begin, part.row_end - part.row_begin);
    multiply(task);
  }
}

/// The whole call.
inline void run_tile_blocks(void (*multiply)(const TileBlocksTask&), const LinearArgs& args) {
  constexpr int kWidest = kPanelVectors[kPanelWidths - 1];
  const std::int64_t batch = args.weight.batch();
  const std::int64_t work =
      args.weight.kept() * detail::ceil_div(args.tokens, kTileGroup) / kMinWorkPerThread;
  const std::int64_t threads =
      std::clamp(work, std::int64_t{1}, std::int64_t{std::max(args.parallel.threads, 1)});
  SpmmSplit split{1, 1, kWidest};
  if (threads > 1 && batch < threads) {
    split = best_split(
        {.tokens = args.tokens,
         .in = args.weight.in(),
         .out = args.weight.out(),
         .kept = args.weight.kept(),
         .lanes = kTileGroup,
         .widest = kWidest,
         .threads = threads,
         .row_panels = detail::ceil_div(args.weight.out(), args.weight.header().block_rows)},
        kTileBlocksSplit);
  }
  const std::int64_t step = split.vectors * kTileGroup;
  const std::int64_t panels = detail::ceil_div(args.tokens, step);
  const std::int64_t parts = split.token_parts * split.row_parts;
  ParallelFor parallel = args.parallel;
  if (threads == 1) parallel.run = nullptr;
  parallel_for(parallel, batch * parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const TileBlocks weight(args.weight, item / parts);
      const std::int64_t row = item % parts / split.token_parts;
      const std::int64_t column = item % split.token_parts;
      run_tile_blocks_part(
          multiply, weight, SpmmCall(args, item / parts),
          {weight.balanced_row(row, split.row_parts), weight.balanced_row(row + 1, split.row_parts),
           first_panel(panels, split.token_parts, column) * step,
           std::min(first_panel(panels, split.token_parts, column + 1) * step, args.tokens)});
    }
  });
}

/// Predicted seconds of one call. Tile and vector units work side by side; that they never wait
/// for each other is not counted on.
inline double tile_blocks_seconds(const LinearDesc& desc, const Machine& machine,
                                  std::int64_t tokens, int threads) {
  constexpr TileBlocksCost kCost{};
  constexpr double kHertz = 3.0e9;
  constexpr double kMemoryBytesPerCycle = 4.0;
  constexpr double kCacheBytesPerCycle = 16.0;
  const std::int64_t bytes = dtype_bytes(desc.weight_dtype);
  const std::int64_t bands = detail::ceil_div(desc.out, kPieceRows);
  const std::int64_t lines = detail::ceil_div(desc.in * bytes, kPieceLine);
  const double pieces = static_cast<double>(desc.batch * bands * lines) * desc.density;
  const std::int64_t passes = detail::ceil_div(tokens, pass_tokens(desc.in * bytes));
  const std::int64_t tiles = detail::ceil_div(tokens, kTileGroup);
  const double products = static_cast<double>(tiles / 2 * 4) * kCost.product +
                          static_cast<double>(tiles % 2 * 2) * kCost.lone_product;
  const double cycles =
      pieces * (static_cast<double>(passes) * kCost.turn + products) +
      static_cast<double>(desc.batch * bands * kPieceRows * tokens) * kCost.result +
      static_cast<double>(desc.batch * desc.in * tokens) * kCost.input;
  const double kept_bytes = pieces * static_cast<double>(kPieceBytes);
  const double rate = kept_bytes > static_cast<double>(machine.l3_bytes) ? kMemoryBytesPerCycle
                                                                         : kCacheBytesPerCycle;
  const double work = kept_bytes / static_cast<double>(bytes) * static_cast<double>(tiles);
  const double used =
      std::clamp(work / static_cast<double>(kMinWorkPerThread), 1.0, std::max(threads, 1) * 1.0);
  return std::max(cycles, kept_bytes / rate) / (kHertz * used);
}

/// Blocks that are not whole pieces.
inline std::string refuses_part_pieces(const LinearDesc& desc) {
  const std::int64_t line = kPieceLine / dtype_bytes(desc.weight_dtype);
  if (desc.pattern.block_rows % kPieceRows == 0 && desc.pattern.block_cols % line == 0) {
    return refuses_long_int8_rows(desc);
  }
  return "takes blocks of whole pieces of " + std::to_string(kPieceRows) + "x" +
         std::to_string(line) + ", not " + desc.pattern.to_string();
}

template <void (*multiply)(const TileBlocksTask&)>
void add_tile_blocks_row(std::string_view name, std::uint32_t needs, DType dtype) {
  LinearKernel kernel = linear_row(name, needs, Layout::kBsr, dtype);
  kernel.refuses = refuses_part_pieces;
  kernel.seconds = tile_blocks_seconds;
  kernel.run = [](const LinearArgs& args) { run_tile_blocks(multiply, args); };
  register_linear_kernel(kernel);
}

}  // namespace gossamer::cpu
