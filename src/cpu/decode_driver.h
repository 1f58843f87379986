// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/layouts.h"
#include "cpu/decode_task.h"
#include "cpu/scratch.h"
#include "gossamer/linear.h"

// Threads and blocking of kernels for a few tokens, whatever format the weight has. A thread
// streams its own rows once for up to 8 tokens; X is copied, so that its rows are padded and rows a
// power of two bytes apart do not share cache sets. Rows are cut so that all threads read about the
// same number of bytes.
namespace gossamer::cpu {

inline constexpr std::int64_t kDecodeRows = 64;
inline constexpr std::int64_t kMinPositionsPerThread =
    131072;  ///< below, waking a thread costs more

/// One group of at most kDecodeTokens tokens of one batch.
template <typename Source>
class DecodeGroup {
 public:
  DecodeGroup(const DecodeFunctions& functions, const LinearArgs& args, std::int64_t batch,
              std::int64_t token, std::int64_t tokens)
      : functions_(functions),
        args_(args),
        weight_(args.weight, batch),
        x_bytes_(dtype_bytes(args.weight.dtype())),
        bytes_(functions.dequantize == nullptr ? x_bytes_ : 4),
        y_bytes_(args.y_scale > 0.0f ? 1 : bytes_),
        batch_(batch),
        token_(token),
        tokens_(tokens) {}

  /// Rows [begin, end), on the calling thread.
  void run(std::int64_t begin, std::int64_t end) const {
    if (begin >= end) return;
    // A row more than whole vectors, and not a power of two.
    const std::int64_t padded = (detail::ceil_div(weight_.in, kDecodePadding) + 1) * kDecodePadding;
    constexpr std::int64_t kTokens = kDecodeTokens + 1;
    float* memory = scratch(kTokens * (padded + kDecodeRows));
    float* sums = memory + kTokens * padded;
    DecodeTask task{};
    task.x_is_finite = copy_inputs(padded, reinterpret_cast<std::byte*>(memory));
    task.x = memory;
    task.x_stride = padded;
    task.values = weight_.values;
    task.in = weight_.in;
    task.tokens = functions_.unsigned_inputs ? tokens_ + 1 : tokens_;
    task.sums = sums;
    task.sums_stride = kDecodeRows;
    for (std::int64_t row = begin; row < end; row += kDecodeRows) {
      weight_.place(row, task);
      task.rows = std::min(kDecodeRows, end - row);
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
    const std::int64_t bytes = functions_.input_bytes;
    bool finite = true;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const std::byte* x =
          static_cast<const std::byte*>(args_.x) +
          (batch_ * args_.x_batch_stride + (token_ + t) * args_.x_stride) * x_bytes_;
      std::byte* row = to + t * padded * bytes;
      if (functions_.widen == nullptr) {
        std::memcpy(row, x, static_cast<std::size_t>(weight_.in * bytes));
      } else {
        functions_.widen(x, weight_.in, row);
      }
      std::memset(row + weight_.in * bytes, 0,
                  static_cast<std::size_t>((padded - weight_.in) * bytes));
      finite = finite && (functions_.is_finite == nullptr || functions_.is_finite(x, weight_.in));
    }
    if (functions_.unsigned_inputs) shift_inputs(padded, to);
    return finite;
  }

  /// Inputs plus 128, and a token of 128 behind the last.
  void shift_inputs(std::int64_t padded, std::byte* to) const {
    for (std::int64_t i = 0; i < tokens_ * padded; ++i) to[i] ^= std::byte{0x80};
    std::memset(to + tokens_ * padded, 0x80, static_cast<std::size_t>(padded));
  }

  void dequantize(std::int64_t row, std::int64_t rows, float* sums) const {
    const float* corrections = functions_.unsigned_inputs ? sums + tokens_ * kDecodeRows : nullptr;
    const float* scale = args_.weight_scale;
    functions_.dequantize({sums, kDecodeRows, tokens_, rows,
                           reinterpret_cast<const std::int32_t*>(corrections),
                           args_.x_scale + batch_ * args_.tokens + token_,
                           scale == nullptr ? nullptr : scale + batch_ * weight_.out + row});
  }

  void finish(std::int64_t row, std::int64_t rows, const float* sums) const {
    FinishTask task{};
    task.sums = sums;
    task.sums_stride = kDecodeRows;
    task.tokens = tokens_;
    task.rows = rows;
    if (args_.bias != nullptr) task.bias = at(args_.bias, batch_ * weight_.out + row);
    if (args_.residual != nullptr) {
      task.residual = at(args_.residual, batch_ * args_.residual_batch_stride +
                                             token_ * args_.residual_stride + row);
    }
    task.residual_stride = args_.residual_stride;
    task.y = static_cast<std::byte*>(args_.y) +
             (batch_ * args_.y_batch_stride + token_ * args_.y_stride + row) * y_bytes_;
    task.y_stride = args_.y_stride;
    task.activation = args_.activation;
    task.y_inverse = args_.y_scale > 0.0f ? 1.0f / args_.y_scale : 0.0f;
    functions_.finish(task);
  }

  const DecodeFunctions& functions_;
  const LinearArgs& args_;
  Source weight_;
  std::int64_t x_bytes_;  ///< of an element of X
  std::int64_t bytes_;    ///< of an element of bias and residual
  std::int64_t y_bytes_;  ///< of an element of Y
  std::int64_t batch_;
  std::int64_t token_;
  std::int64_t tokens_;
};

/// The whole call. A source is one batch of a packed weight; it has `values`, `out`, `in`,
/// `balanced_row(part, parts, value_bits)` and `place(row, task)`, which sets what the task says of
/// its format.
template <typename Source>
void run_decode(const DecodeFunctions& functions, const LinearArgs& args) {
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
  // Equal groups: nine tokens as five and four, not as eight and one.
  const std::int64_t groups = detail::ceil_div(args.tokens, kDecodeTokens);
  parallel_for(parallel, batch * parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t b = item / parts;
      const Source rows(args.weight, b);
      const std::int64_t first = rows.balanced_row(item % parts, parts, value_bits);
      const std::int64_t last = rows.balanced_row(item % parts + 1, parts, value_bits);
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t token = args.tokens * group / groups;
        const std::int64_t next = args.tokens * (group + 1) / groups;
        DecodeGroup<Source>(functions, args, b, token, next - token).run(first, last);
      }
    }
  });
}

}  // namespace gossamer::cpu
