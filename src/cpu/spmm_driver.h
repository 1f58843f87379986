// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"
#include "cpu/scratch.h"
#include "gossamer/linear.h"

// Threads and blocking of K-blocked kernels, whatever layout the kept values come from:
//
//   for each block of rows (their sums stay in L2), each panel of tokens:
//     for each block of KC inputs: transpose X into a tile (L1), add every kept value of the rows
//     transpose the sums to Y, with bias, residual and activation
//
// A source is one batch of a packed weight. It has
//   out, in, block, block_count
//   balanced_row(part, parts)  the first row of a part, so that parts take about equal time
//   rows_at_once(row, wanted)  how many rows, at most `wanted`, it can index at once
//   scratch_bytes(row, rows)   what that takes
//   index(row, rows, scratch)  prepares them
//   add_task(k)                where block k of those rows lies; the driver fills in the rest
//   corrections                of those rows, in quantized calls; other sources have none
namespace gossamer::cpu {

inline constexpr std::int64_t kSumsFloats = 65536;  ///< 256 KB: half an L2 of the smallest machines
/// Vector multiply-adds; below, waking a thread costs more.
inline constexpr std::int64_t kMinWorkPerThread = 16384;

/// Of kernels for quantized calls.
inline std::string refuses_long_rows(const LinearDesc& desc) {
  if (desc.in <= kMaxQuantizedInputs) return {};
  return "sums of more than 65536 int8 products may overflow; this weight has " +
         std::to_string(desc.in) + " inputs";
}

/// The narrowest panel that holds `tokens`, at most `widest` vectors: an index into kPanelVectors.
inline int panel_width(std::int64_t tokens, std::int64_t vector_lanes, int widest) {
  for (int i = 0; i < kPanelWidths; ++i) {
    if (kPanelVectors[i] >= widest || kPanelVectors[i] * vector_lanes >= tokens) return i;
  }
  return kPanelWidths - 1;
}

/// The pointers of a call for one batch, from which those of a panel follow.
class SpmmCall {
 public:
  SpmmCall(const LinearArgs& args, std::int64_t batch)
      : args_(args),
        batch_(batch),
        x_bytes_(dtype_bytes(args.weight.dtype())),
        bytes_(args.x_scale == nullptr ? x_bytes_ : 4) {
    x_ = static_cast<const std::byte*>(args.x) + batch * args.x_batch_stride * x_bytes_;
    y_ = const_cast<std::byte*>(at(args.y, batch * args.y_batch_stride));
    bias_ = args.bias == nullptr ? nullptr : at(args.bias, batch * args.weight.out());
    residual_ =
        args.residual == nullptr ? nullptr : at(args.residual, batch * args.residual_batch_stride);
  }

  const std::byte* x(std::int64_t token, std::int64_t k) const {
    return x_ + (token * args_.x_stride + k) * x_bytes_;
  }
  std::int64_t x_stride() const { return args_.x_stride; }

  const float* x_scale(std::int64_t token) const {
    return args_.x_scale == nullptr ? nullptr : args_.x_scale + batch_ * args_.tokens + token;
  }
  const float* weight_scale(std::int64_t row) const {
    return args_.weight_scale == nullptr ? nullptr
                                         : args_.weight_scale + batch_ * args_.weight.out() + row;
  }

  FinishTask finish(std::int64_t token, std::int64_t tokens, std::int64_t row,
                    std::int64_t rows) const {
    FinishTask task{};
    task.tokens = tokens;
    task.rows = rows;
    task.bias = bias_ == nullptr ? nullptr : at(bias_, row);
    task.residual =
        residual_ == nullptr ? nullptr : at(residual_, token * args_.residual_stride + row);
    task.residual_stride = args_.residual_stride;
    task.y = y_ + (token * args_.y_stride + row) * bytes_;
    task.y_stride = args_.y_stride;
    task.activation = args_.activation;
    return task;
  }

 private:
  const std::byte* at(const void* data, std::int64_t index) const {
    return static_cast<const std::byte*>(data) + index * bytes_;
  }

  const LinearArgs& args_;
  std::int64_t batch_;
  std::int64_t x_bytes_;  ///< of an element of X
  std::int64_t bytes_;    ///< of an element of Y, bias and residual
  const std::byte* x_;
  std::byte* y_;
  const std::byte* bias_;
  const std::byte* residual_;
};

/// What one thread does: rows × tokens of one batch.
struct SpmmPart {
  std::int64_t row_begin;
  std::int64_t row_end;
  std::int64_t token_begin;
  std::int64_t token_end;
};

/// All inputs of some indexed rows for one panel of `tokens` tokens.
template <typename Source>
void run_panel(const KcsrFunctions& functions, const Source& source, const SpmmCall& call,
               int width, bool one, std::int64_t token, std::int64_t tokens, std::int64_t row,
               std::int64_t rows, float* tile, float* sums) {
  const std::int64_t lanes = functions.vector_lanes * (one ? 1 : kPanelVectors[width]);
  for (std::int64_t k = 0; k < source.block_count; ++k) {
    const std::int64_t columns = std::min(source.block, source.in - k * source.block);
    const std::byte* x = call.x(token, k * source.block);
    const bool plain = one || functions.pack({x, call.x_stride(), tokens, columns, tile, lanes});
    KcsrAddTask task = source.add_task(k);
    task.rows = rows;
    task.tile = one ? static_cast<const void*>(x) : tile;
    task.sums = sums;
    task.first = k == 0;
    task.columns = columns;
    (one ? functions.add_one : plain ? functions.add[width] : functions.add_careful[width])(task);
  }
  KcsrStoreTask store{};
  store.sums = sums;
  store.lanes = lanes;
  store.out = call.finish(token, tokens, row, rows);
  if constexpr (requires { source.corrections; }) {
    store.corrections = source.corrections;
    store.x_scale = call.x_scale(token);
    store.weight_scale = call.weight_scale(row);
  }
  one ? functions.store_one(store) : functions.store(store);
}

/// `vectors`: of the widest panel; 0 takes tokens one by one.
template <typename Source>
void run_part(const KcsrFunctions& functions, Source& source, const SpmmCall& call, int vectors,
              const SpmmPart& part) {
  const bool one = vectors == 0;
  const int widest =
      one ? 0 : panel_width(part.token_end - part.token_begin, functions.vector_lanes, vectors);
  const std::int64_t lanes = functions.vector_lanes * (one ? 1 : kPanelVectors[widest]);
  const std::int64_t tile_floats =
      detail::ceil_div(source.block, kTileRounding) * kTileRounding * lanes;
  for (std::int64_t row = part.row_begin; row < part.row_end;) {
    const std::int64_t rows =
        source.rows_at_once(row, std::min(part.row_end - row, kSumsFloats / lanes));
    const std::int64_t bytes = source.scratch_bytes(row, rows);
    float* tile = scratch(tile_floats + kSumsFloats + detail::ceil_div(bytes, 4));
    float* sums = tile + tile_floats;
    source.index(row, rows, reinterpret_cast<std::byte*>(sums + kSumsFloats));
    for (std::int64_t token = part.token_begin; token < part.token_end;) {
      const std::int64_t left = part.token_end - token;
      const int width = one ? 0 : panel_width(left, functions.vector_lanes, vectors);
      const std::int64_t tokens =
          one ? 1 : std::min(left, kPanelVectors[width] * functions.vector_lanes);
      run_panel(functions, source, call, width, one, token, tokens, row, rows, tile, sums);
      token += tokens;
    }
    row += rows;
  }
}

/// The whole call; `make_source(batch)` gives a source.
template <typename MakeSource>
void run_spmm(const KcsrFunctions& functions, int vectors, const LinearArgs& args,
              const MakeSource& make_source) {
  const std::int64_t batch = args.weight.batch();
  const std::int64_t lanes = vectors == 0 ? 1 : functions.vector_lanes * vectors;
  const std::int64_t panels = detail::ceil_div(args.tokens, lanes);
  const std::int64_t work = args.weight.kept() *
                            detail::ceil_div(args.tokens, functions.vector_lanes) /
                            kMinWorkPerThread;
  const std::int64_t threads =
      std::clamp(work, std::int64_t{1}, std::int64_t{std::max(args.parallel.threads, 1)});
  // Tokens first, because a tile is then transposed once; rows where panels do not suffice.
  const std::int64_t token_parts = std::min(threads, panels);
  const std::int64_t row_parts =
      batch >= threads ? 1 : detail::ceil_div(threads, std::max(token_parts, std::int64_t{1}));
  const std::int64_t parts = token_parts * row_parts;
  ParallelFor parallel = args.parallel;
  if (threads == 1) parallel.run = nullptr;
  parallel_for(parallel, batch * parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      auto source = make_source(item / parts);
      const std::int64_t row = item % parts / token_parts;
      const std::int64_t column = item % parts % token_parts;
      run_part(functions, source, SpmmCall(args, item / parts), vectors,
               {source.balanced_row(row, row_parts), source.balanced_row(row + 1, row_parts),
                panels * column / token_parts * lanes,
                std::min(panels * (column + 1) / token_parts * lanes, args.tokens)});
    }
  });
}

/// Cycles that the model charges, by table row: what the caches cost is in per_vector.
struct SpmmCost {
  double per_value;          ///< broadcast, index, loop
  double per_vector;         ///< multiply-add with a load from the tile
  double per_segment;        ///< a row in a block: offsets and one mispredicted branch
  double per_transposed;     ///< an element of X or Y
  double per_position = 0;   ///< of the dense weight, to index it; 0 where columns lie ready
  double one_per_group = 0;  ///< a vector of gathered inputs
};

/// Predicted seconds of one call.
inline double spmm_seconds(std::int64_t vector_lanes, const SpmmCost& cost, int vectors,
                           std::int64_t block, const LinearDesc& desc, std::int64_t tokens,
                           int threads) {
  constexpr double kHertz = 3.5e9;
  constexpr double kBytesPerCycle = 12.0;
  const auto batch = static_cast<double>(desc.batch);
  const auto out = static_cast<double>(desc.out);
  const auto in = static_cast<double>(desc.in);
  const auto lanes = static_cast<double>(vector_lanes);
  const double kept = batch * out * in * desc.density;
  const double segments = batch * out * static_cast<double>(detail::ceil_div(desc.in, block));
  double cycles = batch * out * in * cost.per_position;
  if (vectors == 0) {
    const double groups = std::max(kept / lanes + 0.5 * segments, segments);
    cycles += static_cast<double>(tokens) * (groups * cost.one_per_group + segments * 4.0);
  } else {
    for (std::int64_t left = tokens; left > 0;) {
      const int width = panel_width(left, vector_lanes, vectors);
      const double used = kPanelVectors[width];
      const double transposes = (in + out) * used * lanes * batch * cost.per_transposed;
      cycles += kept * (cost.per_value + cost.per_vector * used) +
                segments * (cost.per_segment + used) + transposes;
      left -= kPanelVectors[width] * vector_lanes;
    }
  }
  const double bytes = 1.0 + static_cast<double>(dtype_bytes(desc.weight_dtype));
  const double memory = (kept * bytes + segments * 4.0) / kBytesPerCycle;
  const double work = kept * static_cast<double>(detail::ceil_div(tokens, vector_lanes));
  const double used_threads =
      std::clamp(work / static_cast<double>(kMinWorkPerThread), 1.0, std::max(threads, 1) * 1.0);
  return std::max(cycles, memory) / (kHertz * used_threads);
}

}  // namespace gossamer::cpu
