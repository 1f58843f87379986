// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/sm90/launch.cuh"
#include "cuda/sm90/sm90_gemm_sp24.cuh"
#include "cuda/sm90/tensor_map.h"

// Launcher, cost model and table row of one instance of the kernel for many tokens.
namespace gossamer::cuda::sm90 {

/// One way to divide the work, and its predicted time.
struct GemmCut {
  int shared_by = 1;  // blocks that need the same X
  int split = 1;      // blocks among which the inputs are divided
  double seconds = std::numeric_limits<double>::infinity();

  int blocks() const { return shared_by * split; }  // of a cluster
};

template <typename T, typename Shape>
struct GemmInstance {
  static constexpr std::array kSides{1, 2, 4};
  static constexpr int kMostBlocks = 8;  // of a cluster that every GPU can hold

  // Fitted on an H200 (2026-11-30) to 791 products of 16 to 512 tokens in all cuts, and to 120
  // sizes of 33 to 1025 tokens: what they choose there is 0.8 % behind the best row on average, and
  // 9 % at worst. A stage costs what the tensor cores need, or what its bytes need to land in the
  // multiprocessor, and a good deal beyond; in clocks.
  static constexpr double kMathClocks = 4.0 * Shape::kRowTiles * (Shape::kTokens / 2 + 16);
  static constexpr double kBytesPerClock = Shape::kXByTma ? 64.0 : 12.0;  // that land
  static constexpr double kStepClocks = Shape::kRowTiles == 2 && Shape::kTokens < 192 ? 340 : 250;
  // Tiles of 192 sums a thread gain little where power sets the clock, as it does for them.
  static constexpr double kPower = Shape::kIsFull ? 1.26 : 1.0;
  // A stage whose tokens do not fill the tile; the thread that loads has few registers where 192
  // sums take them.
  static constexpr double kPartialClocks = Shape::kIsFull ? 440 : 40;
  // X that every block reads for itself: 2 to 4 % from 512 tokens on.
  static constexpr double kUnshared = 1.03;
  static constexpr int kUnsharedTokens = 512;
  static constexpr double kTileClocks = 3000;
  static constexpr double kSplitClocks = 250 + 45.0 * Shape::kTokens * Shape::kRowTiles;
  static constexpr double kClock = 1.9e9;
  static constexpr double kLaunchSeconds = 2e-6;
  // What all blocks together take from L2.
  static constexpr double kFeedBytesPerSecond = 14.8e12;

  static int input_tiles(const LinearSp24Args& args) {
    return static_cast<int>(detail::nm24_input_tiles(args.in, dtype_bytes(args.dtype)));
  }
  static double weight_bytes(const LinearSp24Args& args) {
    return static_cast<double>(detail::nm24_row_tiles(args.out)) * input_tiles(args) * Shape::kTile;
  }
  static int round_up(std::int64_t count, int size, int multiple) {
    const std::int64_t blocks = (count + size - 1) / size;
    return static_cast<int>((blocks + multiple - 1) / multiple * multiple);
  }
  static int row_blocks(const LinearSp24Args& args, const GemmCut& cut) {
    return round_up(args.out, Shape::kRows, cut.shared_by);
  }
  static int token_blocks(const LinearSp24Args& args) {
    return round_up(args.tokens, Shape::kTokens, 1);
  }
  static int tiles(const LinearSp24Args& args, const GemmCut& cut) {
    return row_blocks(args, cut) / cut.shared_by * token_blocks(args);
  }

  /// Tokens that each block loads of the last tile, where that is not full; otherwise 0. Boxes
  /// begin where the swizzle does, every eight tokens.
  static int tail_share(const LinearSp24Args& args, const GemmCut& cut) {
    const auto tokens = static_cast<int>(args.tokens % Shape::kTokens);
    if (cut.shared_by == 1) return tokens;
    return (tokens + 8 * cut.shared_by - 1) / (8 * cut.shared_by) * 8;
  }

  /// Clusters that are on the machine at once. Fewer than the multiprocessors would hold: a cluster
  /// stays inside one of the processor's unequal parts.
  static int most_clusters(const GemmCut& cut, const DeviceInfo& device) {
    static PerDevice prepared;
    static std::array<PerDevice, kMostBlocks + 1> found;
    const auto kernel = gemm_sp24<T, Shape>;
    return found[static_cast<std::size_t>(cut.blocks())].get(device.index, [&] {
      allow_shared_memory(kernel, prepared, device.index);
      return active_clusters(kernel, {.threads = Shape::kThreads,
                                      .shared_bytes = Shape::kSharedBytes,
                                      .cluster = cut.blocks()});
    });
  }

  /// Whether the kernel can be cut so.
  static bool fits(const GemmCut& cut, const LinearSp24Args& args) {
    return cut.blocks() <= kMostBlocks && cut.split <= input_tiles(args) &&
           Shape::can_split(cut.split) && Shape::kTokens % (8 * cut.shared_by) == 0 &&
           (Shape::kXByTma || cut.shared_by == 1);
  }

  /// Whether the blocks of a cluster divide the inputs of the tiles of the last round; each of them
  /// must have a tile of inputs then.
  static bool splits_last_round(const GemmCut& cut, const LinearSp24Args& args, int count,
                                int clusters) {
    const int left = count % clusters;
    return cut.split == 1 && cut.shared_by == 2 && cut.shared_by <= input_tiles(args) &&
           count > clusters && left > 0 && left * cut.shared_by <= clusters &&
           Shape::can_split(cut.shared_by);
  }

  static double predict(const GemmCut& cut, const LinearSp24Args& args, const DeviceInfo& device) {
    const int clusters = most_clusters(cut, device);
    const int count = tiles(args, cut);
    // No cluster of this size fits a part of the processor, such as a slice of it.
    if (clusters <= 0) return std::numeric_limits<double>::infinity();
    if (cut.split > 1 && count > clusters) return std::numeric_limits<double>::infinity();
    const bool splits = splits_last_round(cut, args, count, clusters);
    const int whole = count / clusters;
    const double rounds = splits ? whole + 0.5 : whole + (count % clusters > 0 ? 1 : 0);
    const int steps = (input_tiles(args) + cut.split - 1) / cut.split;
    const double blocks = std::min(count, clusters) * cut.blocks();
    // Of a single tile of tokens only what is there is loaded.
    const double x_bytes =
        128.0 * std::min<double>(static_cast<double>(args.tokens), Shape::kTokens);
    const double feed = Shape::kWBytes + x_bytes / cut.shared_by;
    const double landing = (Shape::kWBytes + x_bytes) / kBytesPerClock;
    // One block of tokens in so many is not full.
    const double partial =
        args.tokens % Shape::kTokens == 0 ? 0.0 : kPartialClocks / token_blocks(args);
    const double clocks = (std::max(kMathClocks, landing) + kStepClocks + partial) * kPower *
                          (cut.shared_by == 1 && args.tokens >= kUnsharedTokens ? kUnshared : 1.0);
    const double step = std::max(clocks / kClock, feed * blocks / kFeedBytesPerSecond);
    const double memory = weight_bytes(args) / device.memory_bytes_per_second;
    const double ends =
        std::ceil(rounds) * kTileClocks + (splits || cut.split > 1 ? kSplitClocks : 0.0);
    return kLaunchSeconds + std::max(rounds * steps * step, memory) + ends / kClock;
  }

  static GemmCut best_cut(const LinearSp24Args& args, const DeviceInfo& device) {
    GemmCut best;
    for (const int split : kSides) {
      for (const int shared_by : kSides) {
        GemmCut cut{shared_by, split};
        if (!fits(cut, args) || !args.cut.allows(shared_by, split)) continue;
        cut.seconds = predict(cut, args, device);
        if (cut.seconds < best.seconds) best = cut;
      }
    }
    return best;
  }

  static std::string refuses(const LinearSp24Kernel&, const LinearSp24Args& args,
                             const DeviceInfo& device) {
    if (std::string why = refuse_device(device); !why.empty()) return why;
    if (Shape::kXByTma && !tma_can_reach(args.x, args.dtype, args.in, args.x_stride)) {
      return "needs X with base and rows aligned to 16 bytes; the stride is " +
             std::to_string(args.x_stride) + " elements";
    }
    return {};
  }

  static double seconds(const LinearSp24Kernel&, const LinearSp24Args& args,
                        const DeviceInfo& device) {
    return best_cut(args, device).seconds;
  }

  static void run(const LinearSp24Kernel& row, const LinearSp24Args& args,
                  const DeviceInfo& device) {
    const GemmCut cut = best_cut(args, device);
    if (cut.seconds == std::numeric_limits<double>::infinity()) {
      throw Error(ErrorCode::kUnsupported,
                  std::string(row.name) + ": no cut that was asked for fits this product");
    }
    run_cut(row, args, device, cut);
  }

  static void run_cut(const LinearSp24Kernel& row, const LinearSp24Args& args,
                      const DeviceInfo& device, const GemmCut& cut) {
    const auto kernel = gemm_sp24<T, Shape>;
    GemmParams<T> params{};
    params.x = static_cast<const T*>(args.x);
    params.y = args.y;
    params.x_stride = args.x_stride;
    params.y_stride = args.y_stride;
    params.epilogue = epilogue_of<T>(args);
    params.in = static_cast<int>(args.in);
    params.input_tiles = input_tiles(args);
    params.row_blocks = row_blocks(args, cut);
    params.token_blocks = token_blocks(args);
    params.shared_by = cut.shared_by;
    params.tail_share = tail_share(args, cut);
    params.split = cut.split;
    params.splits_last_round =
        splits_last_round(cut, args, tiles(args, cut), most_clusters(cut, device));
    params.weight_is_constant = args.weight_is_constant;
    params.y_by_tma = args.y_dtype != DType::kFloat32 &&
                      tma_can_reach(args.y, args.y_dtype, args.out, args.y_stride);

    CUtensorMap x_map{};
    CUtensorMap x_tail_map{};
    if constexpr (Shape::kXByTma) {
      TensorBox box{.data = args.x,
                    .dtype = args.dtype,
                    .columns = args.in,
                    .rows = args.tokens,
                    .stride = args.x_stride,
                    .box_rows = Shape::kTokens / cut.shared_by};
      if (args.tokens >= Shape::kTokens) x_map = make_tensor_map(box);
      box.box_rows = params.tail_share;
      if (box.box_rows > 0) x_tail_map = make_tensor_map(box);
    }
    const CUtensorMap w_map =
        make_tiles_map({.tiles = args.tiles,
                        .tile_bytes = Shape::kTile,
                        .row_tiles = static_cast<int>(detail::nm24_row_tiles(args.out)),
                        .input_tiles = params.input_tiles,
                        .box_row_tiles = Shape::kWTiles});
    CUtensorMap y_map{};
    if (params.y_by_tma) {
      y_map = make_tensor_map({.data = args.y,
                               .dtype = args.y_dtype,
                               .columns = args.out,
                               .rows = args.tokens,
                               .stride = args.y_stride,
                               .box_rows = Shape::kPiece});
    }
    LaunchShape shape{.threads = Shape::kThreads,
                      .shared_bytes = Shape::kSharedBytes,
                      .cluster = cut.blocks(),
                      .stream = static_cast<cudaStream_t>(args.stream)};
    shape.blocks = std::min(tiles(args, cut), most_clusters(cut, device)) * shape.cluster;
    launch(kernel, shape, row.name, x_map, x_tail_map, y_map, params, w_map);
  }

  static LinearSp24Kernel row(std::string_view name, DType dtype) {
    return {.name = name,
            .dtype = dtype,
            .tile = {.tokens = Shape::kTokens,
                     .accurate_sums = Shape::kPromotes || !__is_same(T, __nv_fp8_e4m3)},
            .refuses = refuses,
            .seconds = seconds,
            .launch = run};
  }
};

}  // namespace gossamer::cuda::sm90
