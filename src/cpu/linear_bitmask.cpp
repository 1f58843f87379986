// SPDX-License-Identifier: BSD-3-Clause
// Threads, blocking and table rows of *_linear_bitmask_*: the bitmask format for a few tokens.
//
// A thread streams its own rows once for every 8 tokens; X is copied, so that its rows are padded
// and rows a power of two bytes apart do not share cache sets. Rows are cut so that all threads
// read about the same number of bytes.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/layouts.h"
#include "cpu/bitmask_rows.h"
#include "cpu/bitmask_task.h"
#include "cpu/registration.h"
#include "cpu/scratch.h"
#include "cpu/spmm_driver.h"
#include "gossamer/linear.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

constexpr std::int64_t kRowsAtOnce = 64;
constexpr std::int64_t kMinPositionsPerThread = 131072;  ///< below, waking a thread costs more

/// One group of at most kDecodeTokens tokens of one batch.
class Group {
 public:
  Group(const BitmaskDecodeFunctions& functions, const LinearArgs& args, std::int64_t batch,
        std::int64_t token)
      : functions_(functions),
        args_(args),
        weight_(args.weight, batch),
        x_bytes_(dtype_bytes(args.weight.dtype())),
        bytes_(functions.dequantize == nullptr ? x_bytes_ : 4),
        batch_(batch),
        token_(token),
        tokens_(std::min(kDecodeTokens, args.tokens - token)) {}

  /// Rows [begin, end), on the calling thread.
  void run(std::int64_t begin, std::int64_t end) const {
    if (begin >= end) return;
    // A row more than whole vectors, and not a power of two.
    const std::int64_t padded = (ceil_div(weight_.in, kDecodePadding) + 1) * kDecodePadding;
    constexpr std::int64_t kTokens = kDecodeTokens + 1;
    float* memory = scratch(kTokens * (padded + kRowsAtOnce));
    float* sums = memory + kTokens * padded;
    BitmaskDecodeTask task{};
    task.x_is_finite = copy_inputs(padded, reinterpret_cast<std::byte*>(memory));
    task.x = memory;
    task.x_stride = padded;
    task.row_bytes = weight_.row_bytes;
    task.values = weight_.values;
    task.in = weight_.in;
    task.tokens = functions_.dequantize == nullptr ? tokens_ : tokens_ + 1;
    task.sums = sums;
    task.sums_stride = kRowsAtOnce;
    for (std::int64_t row = begin; row < end; row += kRowsAtOnce) {
      task.bits = weight_.bits + row * weight_.row_bytes;
      task.offsets = weight_.offsets + row;
      task.rows = std::min(kRowsAtOnce, end - row);
      functions_.multiply(task);
      if (functions_.dequantize != nullptr) dequantize(row, task.rows, sums);
      finish(row, task.rows, sums);
    }
  }

 private:
  const std::byte* at(const void* data, std::int64_t index) const {
    return static_cast<const std::byte*>(data) + index * bytes_;
  }

  bool copy_inputs(std::int64_t padded, std::byte* to) const {
    const std::int64_t bytes = functions_.takes_elements ? x_bytes_ : 4;
    bool finite = true;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const std::byte* x =
          static_cast<const std::byte*>(args_.x) +
          (batch_ * args_.x_batch_stride + (token_ + t) * args_.x_stride) * x_bytes_;
      std::byte* row = to + t * padded * bytes;
      if (functions_.takes_elements) {
        std::memcpy(row, x, static_cast<std::size_t>(weight_.in * bytes));
      } else {
        functions_.widen(x, weight_.in, reinterpret_cast<float*>(row));
      }
      std::memset(row + weight_.in * bytes, 0,
                  static_cast<std::size_t>((padded - weight_.in) * bytes));
      finite = finite && functions_.is_finite(x, weight_.in);
    }
    if (functions_.dequantize != nullptr) shift_inputs(padded, to);
    return finite;
  }

  /// Inputs plus 128, and a token of 128 behind the last.
  void shift_inputs(std::int64_t padded, std::byte* to) const {
    for (std::int64_t i = 0; i < tokens_ * padded; ++i) to[i] ^= std::byte{0x80};
    std::memset(to + tokens_ * padded, 0x80, static_cast<std::size_t>(padded));
  }

  void dequantize(std::int64_t row, std::int64_t rows, float* sums) const {
    const float* corrections = sums + tokens_ * kRowsAtOnce;
    const float* scale = args_.weight_scale;
    functions_.dequantize({sums, kRowsAtOnce, tokens_, rows,
                           reinterpret_cast<const std::int32_t*>(corrections),
                           args_.x_scale + batch_ * args_.tokens + token_,
                           scale == nullptr ? nullptr : scale + batch_ * weight_.out + row});
  }

  void finish(std::int64_t row, std::int64_t rows, const float* sums) const {
    FinishTask task{};
    task.sums = sums;
    task.sums_stride = kRowsAtOnce;
    task.tokens = tokens_;
    task.rows = rows;
    if (args_.bias != nullptr) task.bias = at(args_.bias, batch_ * weight_.out + row);
    if (args_.residual != nullptr) {
      task.residual = at(args_.residual, batch_ * args_.residual_batch_stride +
                                             token_ * args_.residual_stride + row);
    }
    task.residual_stride = args_.residual_stride;
    task.y = const_cast<std::byte*>(
        at(args_.y, batch_ * args_.y_batch_stride + token_ * args_.y_stride + row));
    task.y_stride = args_.y_stride;
    task.activation = args_.activation;
    functions_.finish(task);
  }

  const BitmaskDecodeFunctions& functions_;
  const LinearArgs& args_;
  BitmaskRows weight_;
  std::int64_t x_bytes_;  ///< of an element of X
  std::int64_t bytes_;    ///< of an element of Y, bias and residual
  std::int64_t batch_;
  std::int64_t token_;
  std::int64_t tokens_;
};

void run(const BitmaskDecodeFunctions& functions, const LinearArgs& args) {
  const std::int64_t batch = args.weight.batch();
  const std::int64_t positions = args.weight.out() * args.weight.in();
  const std::int64_t threads =
      std::clamp(batch * positions / kMinPositionsPerThread, std::int64_t{1},
                 std::int64_t{std::max(args.parallel.threads, 1)});
  const std::int64_t parts = batch >= threads ? 1 : threads;
  ParallelFor parallel = args.parallel;
  if (threads == 1) parallel.run = nullptr;
  // What a kept value costs in bits of the mask: its bytes.
  const std::int64_t value_bits = 8 * dtype_bytes(args.weight.dtype());
  parallel_for(parallel, batch * parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t b = item / parts;
      const BitmaskRows rows(args.weight, b);
      const std::int64_t first = rows.balanced_row(item % parts, parts, value_bits);
      const std::int64_t last = rows.balanced_row(item % parts + 1, parts, value_bits);
      for (std::int64_t token = 0; token < args.tokens; token += kDecodeTokens) {
        Group(functions, args, b, token).run(first, last);
      }
    }
  });
}

/// Cycles that the model charges for a step of `columns` positions.
struct Cost {
  double columns;
  double per_step;
  double per_token;
};

// Fitted on zen5-avx512 at 1024×1024 and 4096×4096, 50–95 % zeros, 2026-11-23.
constexpr Cost kAvx2Cost{8.0, 1.8, 0.42};
constexpr Cost kAvx2HalfCost{8.0, 1.9, 0.42};
constexpr Cost kAvx512Cost{16.0, 2.4, 0.4};
constexpr Cost kInt8Cost{64.0, 3.3, 0.5};
constexpr Cost kBf16Cost{32.0, 2.8, 0.5};

double seconds(const LinearDesc& desc, const Machine& machine, std::int64_t tokens, int threads,
               const Cost& cost) {
  constexpr double kHertz = 3.5e9;
  constexpr double kMemoryBytesPerCycle = 8.0;
  constexpr double kCacheBytesPerCycle = 20.0;
  const double positions = static_cast<double>(desc.batch) * static_cast<double>(desc.out) *
                           static_cast<double>(desc.in);
  const double groups = static_cast<double>(ceil_div(tokens, kDecodeTokens));
  const double compute = positions / cost.columns *
                         (cost.per_step * groups + cost.per_token * static_cast<double>(tokens));
  const double bytes =
      positions * (desc.density * static_cast<double>(dtype_bytes(desc.weight_dtype)) + 0.125);
  const double rate =
      bytes > static_cast<double>(machine.l3_bytes) ? kMemoryBytesPerCycle : kCacheBytesPerCycle;
  const double used = std::clamp(positions / static_cast<double>(kMinPositionsPerThread), 1.0,
                                 std::max(threads, 1) * 1.0);
  return std::max(compute, groups * bytes / rate) / (kHertz * used);
}

template <const BitmaskDecodeFunctions& functions, const Cost& cost>
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
  kernel.run = [](const LinearArgs& args) { run(functions, args); };
  register_linear_kernel(kernel);
}

}  // namespace

void register_linear_bitmask() {
#if defined(__x86_64__)
  using enum DType;
  add_row<avx2_linear_bitmask_f32, kAvx2Cost>("avx2_linear_bitmask_f32", kIsaAvx2, kFloat32);
  add_row<avx2_linear_bitmask_bf16, kAvx2HalfCost>("avx2_linear_bitmask_bf16", kIsaAvx2, kBFloat16);
  add_row<avx2_linear_bitmask_f16, kAvx2HalfCost>("avx2_linear_bitmask_f16", kIsaAvx2, kFloat16);
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
