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
  int split = 1;
  double seconds = std::numeric_limits<double>::infinity();
};

template <typename T, typename Shape>
struct GemmInstance {
  static constexpr int kMostSplit = Shape::kRowTiles == 1 && Shape::kTokens != 192 ? 4 : 1;
  // Measured on an H100 under load: the clock that power allows, the bytes that all blocks together
  // take from L2, and what a launch, the end of a tile and an exchange of sums cost.
  static constexpr double kClock = 1.2e9;
  static constexpr double kCoolClock = 1.65e9;  // with a quarter of the multiprocessors at work
  static constexpr double kMathClocks = 4.0 * Shape::kRowTiles * (Shape::kTokens / 2 + 16);
  static constexpr double kFeedBytesPerSecond =
      !Shape::kXByTma ? 1.5e12 : (Shape::kCluster == 1 ? 8.5e12 : 7e12);
  static constexpr double kFeedBytes =
      Shape::kWBytes + static_cast<double>(Shape::kXBytes) / Shape::kCluster;
  static constexpr double kLaunchSeconds = 3e-6;
  static constexpr double kTileSeconds = 1.5e-6;
  static constexpr double kSplitSeconds = 8e-6;
  // What one block takes of W, however few others there are.
  static constexpr double kBlockBytesPerSecond = 42e9;
  // A block of which half the tokens or more lie past the last one: its X is slow to fill.
  static constexpr double kMostlyOutside = 1.4;

  static int input_tiles(const LinearSp24Args& args) {
    return static_cast<int>(detail::nm24_input_tiles(args.in, dtype_bytes(args.dtype)));
  }
  static double weight_bytes(const LinearSp24Args& args) {
    return static_cast<double>(detail::nm24_row_tiles(args.out)) * input_tiles(args) * Shape::kTile;
  }
  static int row_blocks(const LinearSp24Args& args) {
    const auto blocks = (args.out + Shape::kRows - 1) / Shape::kRows;
    return static_cast<int>((blocks + Shape::kCluster - 1) / Shape::kCluster * Shape::kCluster);
  }
  static int token_blocks(const LinearSp24Args& args) {
    return static_cast<int>((args.tokens + Shape::kTokens - 1) / Shape::kTokens);
  }

  /// Clusters that are on the machine at once when the inputs are divided `split` ways. Fewer than
  /// the multiprocessors would hold: a cluster stays inside one of the processor's unequal parts.
  static int most_clusters(int split, const DeviceInfo& device) {
    static PerDevice prepared;
    static std::array<PerDevice, kMostSplit> found;
    const auto kernel = gemm_sp24<T, Shape>;
    return found[static_cast<std::size_t>(split - 1)].get(device.index, [&] {
      allow_shared_memory(kernel, prepared, device.index);
      return active_clusters(kernel, {.threads = Shape::kThreads,
                                      .shared_bytes = Shape::kSharedBytes,
                                      .cluster = Shape::kCluster * split});
    });
  }

  static GemmCut best_cut(const LinearSp24Args& args, const DeviceInfo& device) {
    const int tiles = row_blocks(args) / Shape::kCluster * token_blocks(args);
    GemmCut best;
    for (int split = 1; split <= kMostSplit; ++split) {
      const int clusters = most_clusters(split, device);
      if (split > input_tiles(args) || (split > 1 && tiles > clusters)) break;
      const double rounds = std::ceil(static_cast<double>(tiles) / clusters);
      const int steps = (input_tiles(args) + split - 1) / split;
      const double blocks = std::min(tiles, clusters) * Shape::kCluster * split;
      const double clock = blocks * 4 <= device.multiprocessors ? kCoolClock : kClock;
      const double step = std::max({kMathClocks / clock, kFeedBytes * blocks / kFeedBytesPerSecond,
                                    Shape::kWBytes / kBlockBytesPerSecond});
      const double memory = weight_bytes(args) / device.memory_bytes_per_second;
      const double work = std::max(rounds * steps * step, memory) *
                          (args.tokens * 2 <= Shape::kTokens ? kMostlyOutside : 1.0);
      const double seconds =
          kLaunchSeconds + work + rounds * kTileSeconds + (split > 1 ? kSplitSeconds : 0.0);
      if (seconds < best.seconds) best = {split, seconds};
    }
    return best;
  }

  static std::string refuses(const LinearSp24Kernel&, const LinearSp24Args& args,
                             const DeviceInfo& device) {
    if (std::string why = refuse_device(device); !why.empty()) return why;
    if (Shape::kMapped) {
      if (std::string why = refuse_experiment("sm90-mapped"); !why.empty()) return why;
    }
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
    const auto kernel = gemm_sp24<T, Shape>;
    const GemmCut cut = best_cut(args, device);

    GemmParams<T> params{};
    params.tiles = reinterpret_cast<const unsigned char*>(args.tiles);
    params.x = static_cast<const T*>(args.x);
    params.y = args.y;
    params.x_stride = args.x_stride;
    params.y_stride = args.y_stride;
    params.epilogue = epilogue_of<T>(args);
    params.in = static_cast<int>(args.in);
    params.w_row_tiles = static_cast<int>(detail::nm24_row_tiles(args.out));
    params.input_tiles = input_tiles(args);
    params.row_blocks = row_blocks(args);
    params.token_blocks = token_blocks(args);
    params.split = cut.split;
    params.weight_is_constant = args.weight_is_constant;
    params.y_by_tma = args.y_dtype != DType::kFloat32 &&
                      tma_can_reach(args.y, args.y_dtype, args.out, args.y_stride);

    CUtensorMap x_map{};
    if constexpr (Shape::kXByTma) {
      x_map = make_tensor_map({.data = args.x,
                               .dtype = args.dtype,
                               .columns = args.in,
                               .rows = args.tokens,
                               .stride = args.x_stride,
                               .box_rows = Shape::kTokens / Shape::kCluster});
    }
    CUtensorMap w_map{};
    if constexpr (Shape::kMapped) {
      w_map = make_tiles_map({.tiles = args.tiles,
                              .tile_bytes = Shape::kTile,
                              .row_tiles = params.w_row_tiles,
                              .input_tiles = params.input_tiles,
                              .box_row_tiles = Shape::kRowTiles * Shape::kWarpgroups});
    }
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
                      .cluster = Shape::kCluster * cut.split,
                      .overlaps_predecessor = true,
                      .stream = static_cast<cudaStream_t>(args.stream)};
    const int tiles = params.row_blocks / Shape::kCluster * params.token_blocks;
    shape.blocks = std::min(tiles, most_clusters(cut.split, device)) * shape.cluster;
    launch(kernel, shape, row.name, x_map, y_map, params, w_map);
  }

  static LinearSp24Kernel row(std::string_view name, DType dtype) {
    return {.name = name,
            .dtype = dtype,
            .tile = {.rows = Shape::kRows,
                     .tokens = Shape::kTokens,
                     .cluster_rows = Shape::kCluster,
                     .split = kMostSplit == 1 ? 1 : 0,
                     .needs_tma_x = Shape::kXByTma,
                     .accurate_sums = Shape::kPromotes || !__is_same(T, __nv_fp8_e4m3)},
            .refuses = refuses,
            .seconds = seconds,
            .launch = run};
  }
};

}  // namespace gossamer::cuda::sm90
