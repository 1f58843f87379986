// SPDX-License-Identifier: BSD-3-Clause
// Launchers and table rows of the kernel for few tokens.
#include "cuda/sm90/sm90_decode_sp24.cuh"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <type_traits>

#include "cuda/sm90/launch.cuh"
#include "cuda/sm90/rows.h"
#include "cuda/sm90/tensor_map.h"

namespace gossamer::cuda::sm90 {
namespace {

constexpr int kSplits[] = {1, 2, 4, 8};  // eight is the largest portable cluster

// Two blocks a multiprocessor, so that the next launch's first loads travel beside this one.
constexpr int kHalfShared = 113 * 1024;
constexpr int kWholeShared = 227 * 1024;
constexpr int kMostStages = 10;
constexpr int kLeastStages = 5;

// Measured on an H200 (2026-11-30): a launch with its first and last bytes, and the end of its last
// tile for each token; a stage, in clocks, beside its products; a row tile; the exchange of partial
// sums; what a multiprocessor takes in, and what all together take from L2, where each block's X
// comes from.
constexpr double kLaunchSeconds = 3e-6;
constexpr double kTokenSeconds = 0.022e-6;
constexpr double kClock = 1.7e9;
constexpr double kStageClocks = 120;
constexpr double kPromoteClocks = 8;  // a token: float8 ends each stage with sums in float32
constexpr double kTileSeconds = 0.15e-6;
constexpr double kExchangeSeconds = 0.3e-6;
constexpr double kLandingBytesPerClock = 64;
// Of its equal part of the memory's bandwidth a block gets more while others have no work.
constexpr double kMoreThanItsPart = 1.1;
constexpr double kL2BytesPerSecond = 7.8e12;
// Clusters of four and eight leave multiprocessors idle or share them.
constexpr double kLargeCluster = 1.1;

/// How a product is cut.
struct Cut {
  int split = 1;
  bool half = false;  // of a multiprocessor's shared memory
  int clusters = 1;
  int stages = 0;
  bool x_resident = false;
  int shared_bytes = 0;
  double seconds = std::numeric_limits<double>::infinity();
};

int row_tiles(const LinearSp24Args& args) {
  return static_cast<int>(detail::nm24_row_tiles(args.out));
}
int input_tiles(const LinearSp24Args& args) {
  return static_cast<int>(detail::nm24_input_tiles(args.in, dtype_bytes(args.dtype)));
}

/// Stages and the place of X for one split; no stages where nothing fits.
template <typename T>
void fit(Cut& cut, const LinearSp24Args& args, int tokens) {
  const int slice = (input_tiles(args) + cut.split - 1) / cut.split;
  const auto stages_in = [&](int bytes, int x_tiles, int stage_bytes) {
    return std::min(kMostStages, (bytes - DecodeShape<T>::shared_bytes(tokens, 0, x_tiles)) /
                                     (stage_bytes + 16));
  };
  for (const int bytes : {kHalfShared, kWholeShared}) {
    const int stages = stages_in(bytes, slice, DecodeShape<T>::kStage);
    if (stages < kLeastStages) continue;
    cut.stages = stages;
    cut.x_resident = true;
    cut.half = bytes == kHalfShared;
    cut.shared_bytes = DecodeShape<T>::shared_bytes(tokens, stages, slice);
    return;
  }
  const int x_stage = DecodeShape<T>::kUnits * DecodeShape<T>::x_tile(tokens);
  cut.stages = stages_in(kWholeShared, 0, DecodeShape<T>::kStage + x_stage);
  cut.x_resident = false;
  cut.shared_bytes =
      DecodeShape<T>::shared_bytes(tokens, cut.stages, cut.stages * DecodeShape<T>::kUnits);
}

/// Clusters that are on the machine at once. Fewer than the multiprocessors would hold: a cluster
/// stays inside one of the processor's unequal parts.
template <typename T, int kTokens>
int most_clusters(int split_index, bool half, const DeviceInfo& device) {
  static PerDevice prepared;
  static std::array<std::array<PerDevice, 2>, std::size(kSplits)> found;
  const auto kernel = decode_sp24<T, kTokens>;
  const int split = kSplits[split_index];
  return found[static_cast<std::size_t>(split_index)][half ? 1 : 0].get(device.index, [&] {
    allow_shared_memory(kernel, prepared, device.index);
    const int clusters = active_clusters(kernel, {.threads = DecodeShape<T>::kThreads,
                                                  .shared_bytes = half ? kHalfShared : kWholeShared,
                                                  .cluster = split});
    return std::min(clusters, device.multiprocessors / split);
  });
}

template <typename T, int kTokens>
Cut best_cut(const LinearSp24Args& args, const DeviceInfo& device) {
  const int rows = row_tiles(args);
  const int inputs = input_tiles(args);
  const double bytes = static_cast<double>(rows) * inputs * DecodeShape<T>::kTile;
  Cut best;
  for (int i = 0; i < static_cast<int>(std::size(kSplits)); ++i) {
    Cut cut;
    cut.split = kSplits[i];
    if (cut.split > inputs) break;
    if (!args.cut.allows(1, cut.split)) continue;
    fit<T>(cut, args, kTokens);
    if (cut.stages < 2) continue;
    cut.clusters = std::min(rows, most_clusters<T, kTokens>(i, cut.half, device));
    if (cut.clusters <= 0) continue;  // none fits a part of the processor, such as a slice of it
    const int rounds = (rows + cut.clusters - 1) / cut.clusters;
    const int slice = (inputs + cut.split - 1) / cut.split;
    const double tiles = static_cast<double>(rounds) * slice;
    const double x_tiles = cut.x_resident ? slice : tiles;
    const double blocks = static_cast<double>(cut.clusters) * cut.split;
    const double x_bytes = x_tiles * DecodeShape<T>::x_tile(kTokens);
    const double stage = DecodeShape<T>::kUnits * 4.0 * (kTokens / 2 + 16) + kStageClocks +
                         (std::is_same_v<T, __nv_fp8_e4m3> ? kPromoteClocks * kTokens : 0.0);
    const double stages = rounds * std::ceil(static_cast<double>(slice) / DecodeShape<T>::kUnits);
    const double landing = (tiles * DecodeShape<T>::kTile + x_bytes) / kLandingBytesPerClock;
    const double part = device.memory_bytes_per_second / device.multiprocessors * kMoreThanItsPart;
    const double stream =
        std::max({bytes / device.memory_bytes_per_second, tiles * DecodeShape<T>::kTile / part,
                  std::max(stages * stage, landing) / kClock,
                  (bytes + blocks * x_bytes) / kL2BytesPerSecond});
    cut.seconds = kLaunchSeconds + kTokens * kTokenSeconds +
                  stream * (cut.split > 2 ? kLargeCluster : 1.0) + rounds * kTileSeconds +
                  (cut.split > 1 ? kExchangeSeconds : 0.0);
    if (cut.seconds < best.seconds) best = cut;
  }
  return best;
}

std::string refuses(const LinearSp24Kernel& row, const LinearSp24Args& args,
                    const DeviceInfo& device) {
  if (std::string why = refuse_device(device); !why.empty()) return why;
  if (args.tokens > row.tile.tokens) {
    return "takes up to " + std::to_string(row.tile.tokens) + " tokens, not " +
           std::to_string(args.tokens);
  }
  return {};
}

template <typename T, int kTokens>
double seconds(const LinearSp24Kernel&, const LinearSp24Args& args, const DeviceInfo& device) {
  // Boxes of X that reach past the last token are slow to fill: the narrowest kernel is the best.
  constexpr double kPerDoubling = 0.05;
  const double waste = std::log2(kTokens / std::max(8.0, static_cast<double>(args.tokens)));
  return best_cut<T, kTokens>(args, device).seconds * (1 + kPerDoubling * std::max(waste, 0.0));
}

template <typename T, int kTokens>
void launch_decode(const LinearSp24Kernel& row, const LinearSp24Args& args,
                   const DeviceInfo& device) {
  const auto kernel = decode_sp24<T, kTokens>;
  const Cut cut = best_cut<T, kTokens>(args, device);
  if (cut.stages == 0) {
    throw Error(ErrorCode::kUnsupported,
                std::string(row.name) + ": no cut that was asked for fits this product");
  }

  DecodeParams<T> params{};
  params.tiles = reinterpret_cast<const unsigned char*>(args.tiles);
  params.x = static_cast<const T*>(args.x);
  params.y = args.y;
  params.x_stride = args.x_stride;
  params.y_stride = args.y_stride;
  params.epilogue = epilogue_of<T>(args);
  params.in = static_cast<int>(args.in);
  params.row_tiles = row_tiles(args);
  params.input_tiles = input_tiles(args);
  params.stages = cut.stages;
  params.x_resident = cut.x_resident;
  params.x_by_tma = tma_can_reach(args.x, args.dtype, args.in, args.x_stride);
  params.weight_is_constant = args.weight_is_constant;

  CUtensorMap x_map{};
  if (params.x_by_tma) {
    x_map = make_tensor_map({.data = args.x,
                             .dtype = args.dtype,
                             .columns = args.in,
                             .rows = args.tokens,
                             .stride = args.x_stride,
                             .box_rows = kTokens});
  }
  const LaunchShape shape{.blocks = cut.clusters * cut.split,
                          .threads = DecodeShape<T>::kThreads,
                          .shared_bytes = cut.shared_bytes,
                          .cluster = cut.split,
                          .stream = static_cast<cudaStream_t>(args.stream)};
  launch(kernel, shape, row.name, x_map, params);
}

template <typename T, int kTokens>
LinearSp24Kernel decode_row(std::string_view name, DType dtype) {
  return {.name = name,
          .dtype = dtype,
          .tile = {.tokens = kTokens},
          .refuses = refuses,
          .seconds = seconds<T, kTokens>,
          .launch = launch_decode<T, kTokens>};
}

}  // namespace

void add_decode_rows(std::vector<LinearSp24Kernel>& rows) {
  using B = __nv_bfloat16;
  using H = __half;
  rows.push_back(decode_row<B, 8>("sm90_decode_sp24_bf16_8", DType::kBFloat16));
  rows.push_back(decode_row<B, 16>("sm90_decode_sp24_bf16_16", DType::kBFloat16));
  rows.push_back(decode_row<B, 32>("sm90_decode_sp24_bf16_32", DType::kBFloat16));
  rows.push_back(decode_row<B, 64>("sm90_decode_sp24_bf16_64", DType::kBFloat16));
  rows.push_back(decode_row<H, 8>("sm90_decode_sp24_f16_8", DType::kFloat16));
  rows.push_back(decode_row<H, 16>("sm90_decode_sp24_f16_16", DType::kFloat16));
  rows.push_back(decode_row<H, 32>("sm90_decode_sp24_f16_32", DType::kFloat16));
  rows.push_back(decode_row<H, 64>("sm90_decode_sp24_f16_64", DType::kFloat16));
  using E = __nv_fp8_e4m3;
  rows.push_back(decode_row<E, 8>("sm90_decode_sp24_f8e4m3_8", DType::kFloat8E4M3));
  rows.push_back(decode_row<E, 16>("sm90_decode_sp24_f8e4m3_16", DType::kFloat8E4M3));
  rows.push_back(decode_row<E, 32>("sm90_decode_sp24_f8e4m3_32", DType::kFloat8E4M3));
  rows.push_back(decode_row<E, 64>("sm90_decode_sp24_f8e4m3_64", DType::kFloat8E4M3));
  using I = signed char;
  rows.push_back(decode_row<I, 8>("sm90_decode_sp24_i8_8", DType::kInt8));
  rows.push_back(decode_row<I, 16>("sm90_decode_sp24_i8_16", DType::kInt8));
  rows.push_back(decode_row<I, 32>("sm90_decode_sp24_i8_32", DType::kInt8));
  rows.push_back(decode_row<I, 64>("sm90_decode_sp24_i8_64", DType::kInt8));
}

}  // namespace gossamer::cuda::sm90
