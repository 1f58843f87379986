// SPDX-License-Identifier: BSD-3-Clause
// Launchers and table rows of the kernels for compute capability 8.x, which 12.x has the
// instruction for too (from the PTX of compute_90, compiled by the driver). Compute capability 9.x
// runs them where they are asked for by name.
#include "cuda/sm80/sm80_mma_sp24.cuh"

#include <algorithm>
#include <cmath>

#include "cuda/common/epilogue_args.cuh"
#include "cuda/common/runtime.h"
#include "cuda/sm80/rows.h"

namespace gossamer::cuda::sm80 {
namespace {

constexpr double kLaunchSeconds = 3e-6;
// Of a multiprocessor: the stages that it takes from L2 and the sparse products of 16-bit inputs a
// second, as the nominal clocks of Ampere have them, half of either reached.
constexpr double kFeedBytesPerSecond = 32e9;
constexpr double kTileProductsPerSecond = 1.4e9 * 2048 * 0.5;

bool is_aligned(const LinearSp24Args& args) {
  constexpr std::int64_t kAlignment = 16;
  return reinterpret_cast<std::uintptr_t>(args.x) % kAlignment == 0 &&
         args.x_stride * dtype_bytes(args.dtype) % kAlignment == 0;
}

int row_blocks(const LinearSp24Args& args) { return static_cast<int>((args.out + 127) / 128); }

template <typename Shape>
std::string refuses(const LinearSp24Kernel&, const LinearSp24Args& args, const DeviceInfo& device) {
  if (device.compute_major != 8 && device.compute_major != 9 && device.compute_major != 12) {
    return "needs compute capability 8.x, 9.x or 12.x, " + device.name + " has " +
           std::to_string(device.compute_major) + "." + std::to_string(device.compute_minor);
  }
  if (Shape::kAligned && !is_aligned(args)) {
    return "needs X with base and rows aligned to 16 bytes; the stride is " +
           std::to_string(args.x_stride) + " elements";
  }
  return {};
}

template <typename Shape>
double seconds(const LinearSp24Kernel&, const LinearSp24Args& args, const DeviceInfo& device) {
  const double tokens = std::ceil(static_cast<double>(args.tokens) / Shape::kTokens);
  const double rounds = std::ceil(row_blocks(args) * tokens / device.multiprocessors);
  const double inputs = static_cast<double>(
      detail::nm24_input_tiles(args.in, static_cast<int>(dtype_bytes(args.dtype))));
  const double products = 128.0 * Shape::kTokens * 32;  // kept ones of a stage
  const double stage =
      std::max(Shape::kStageBytes / kFeedBytesPerSecond, products / kTileProductsPerSecond) *
      (Shape::kAligned ? 1.0 : 2.0);
  const double work = kLaunchSeconds + rounds * inputs * stage;
  // Where there are kernels with wgmma these are only run by name.
  constexpr double kNever = 1e3;
  return device.compute_major == 9 ? kNever + work : work;
}

template <typename T, typename Shape>
void run(const LinearSp24Kernel& row, const LinearSp24Args& args, const DeviceInfo& device) {
  static PerDevice prepared;
  const auto kernel = mma_sp24<T, Shape>;
  prepared.get(device.index, [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               Shape::kSharedBytes),
          "cudaFuncSetAttribute");
    return 1;
  });
  MmaParams<T> params{};
  params.tiles = reinterpret_cast<const unsigned char*>(args.tiles);
  params.x = static_cast<const T*>(args.x);
  params.y = args.y;
  params.x_stride = args.x_stride;
  params.y_stride = args.y_stride;
  params.epilogue = epilogue_of<T>(args);
  params.in = static_cast<int>(args.in);
  params.row_tiles = static_cast<int>(detail::nm24_row_tiles(args.out));
  params.input_tiles = static_cast<int>(
      detail::nm24_input_tiles(args.in, static_cast<int>(dtype_bytes(args.dtype))));
  params.row_blocks = row_blocks(args);
  const std::int64_t token_blocks = (args.tokens + Shape::kTokens - 1) / Shape::kTokens;
  kernel<<<static_cast<unsigned>(params.row_blocks * token_blocks), Shape::kThreads,
           Shape::kSharedBytes, static_cast<cudaStream_t>(args.stream)>>>(params);
  check(cudaGetLastError(), row.name);
}

template <typename T, int kTokens, bool kAligned>
LinearSp24Kernel mma_row(std::string_view name, DType dtype) {
  using Shape = MmaShape<T, kTokens, kAligned>;
  return {.name = name,
          .dtype = dtype,
          .tile = {.tokens = kTokens},
          .refuses = refuses<Shape>,
          .seconds = seconds<Shape>,
          .launch = run<T, Shape>};
}

}  // namespace

void add_mma_rows(std::vector<LinearSp24Kernel>& rows) {
  using B = __nv_bfloat16;
  using H = __half;
  using I = signed char;
  constexpr DType kB = DType::kBFloat16;
  constexpr DType kH = DType::kFloat16;
  constexpr DType kI = DType::kInt8;
  rows.push_back(mma_row<B, 16, true>("sm80_mma_sp24_bf16_128x16", kB));
  rows.push_back(mma_row<B, 64, true>("sm80_mma_sp24_bf16_128x64", kB));
  rows.push_back(mma_row<B, 128, true>("sm80_mma_sp24_bf16_128x128", kB));
  rows.push_back(mma_row<B, 64, false>("sm80_mma_sp24_bf16_128x64_unaligned", kB));
  rows.push_back(mma_row<H, 16, true>("sm80_mma_sp24_f16_128x16", kH));
  rows.push_back(mma_row<H, 64, true>("sm80_mma_sp24_f16_128x64", kH));
  rows.push_back(mma_row<H, 128, true>("sm80_mma_sp24_f16_128x128", kH));
  rows.push_back(mma_row<H, 64, false>("sm80_mma_sp24_f16_128x64_unaligned", kH));
  rows.push_back(mma_row<I, 16, true>("sm80_mma_sp24_i8_128x16", kI));
  rows.push_back(mma_row<I, 64, true>("sm80_mma_sp24_i8_128x64", kI));
  rows.push_back(mma_row<I, 128, true>("sm80_mma_sp24_i8_128x128", kI));
  rows.push_back(mma_row<I, 64, false>("sm80_mma_sp24_i8_128x64_unaligned", kI));
}

}  // namespace gossamer::cuda::sm80
