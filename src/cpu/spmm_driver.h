// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/layouts.h"
#include "cpu/kcsr_task.h"
#include "cpu/scratch.h"
#include "cpu/spmm_split.h"
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
//   kRowStep                   where rows can only be cut at its multiples; others have none
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
        bytes_(args.x_scale == nullptr ? x_bytes_ : 4),
        y_bytes_(args.y_scale > 0.0f ? 1 : bytes_) {
    x_ = static_cast<const std::byte*>(args.x) + batch * args.x_batch_stride * x_bytes_;
    y_ = static_cast<std::byte*>(args.y) + batch * args.y_batch_stride * y_bytes_;
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
    task.y = y_ + (token * args_.y_stride + row) * y_bytes_;
    task.y_stride = args_.y_stride;
    task.activation = args_.activation;
    task.y_inverse = args_.y_scale > 0.0f ? 1.0f / args_.y_scale : 0.0f;
    return task;
  }

 private:
  const std::byte* at(const void* data, std::int64_t index) const {
    return static_cast<const std::byte*>(data) + index * bytes_;
  }

  const LinearArgs& args_;
  std::int64_t batch_;
  std::int64_t x_bytes_;  ///< of an element of X
  std::int64_t bytes_;    ///< of an element of bias and residual
  std::int64_t y_bytes_;  ///< of an element of Y
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

/// Floats of a tile of `inputs` inputs and `lanes` tokens.
inline std::int64_t tile_floats(const KcsrFunctions& functions, std::int64_t inputs,
                                std::int64_t lanes) {
  const std::int64_t words = detail::ceil_div(inputs, functions.word_inputs);
  return detail::ceil_div(words, kTileRounding) * kTileRounding * lanes;
}

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
  const std::int64_t all = part.token_end - part.token_begin;
  const int widest = one ? 0 : panel_width(all, functions.vector_lanes, vectors);
  const std::int64_t lanes = functions.vector_lanes * (one ? 1 : kPanelVectors[widest]);
  const std::int64_t tile_size = tile_floats(functions, source.block, lanes);
  for (std::int64_t row = part.row_begin; row < part.row_end;) {
    const std::int64_t rows =
        source.rows_at_once(row, std::min(part.row_end - row, kSumsFloats / lanes));
    const std::int64_t bytes = source.scratch_bytes(row, rows);
    float* tile = scratch(tile_size + kSumsFloats + detail::ceil_div(bytes, 4));
    float* sums = tile + tile_size;
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

/// One batch with all threads.
template <typename MakeSource>
void run_split(const KcsrFunctions& functions, const SpmmSplit& split, const LinearArgs& args,
               std::int64_t batch, const MakeSource& make_source) {
  const SpmmCall call(args, batch);
  const std::int64_t lanes = functions.vector_lanes * std::max(split.vectors, 1);
  const std::int64_t step = split.vectors == 0 ? 1 : lanes;
  const std::int64_t panels = detail::ceil_div(args.tokens, step);
  const std::int64_t parts = split.token_parts * split.row_parts;
  parallel_for(args.parallel, parts, [&](std::int64_t begin, std::int64_t end) {
    auto source = make_source(batch);
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t row = item / split.token_parts;
      const std::int64_t column = item % split.token_parts;
      run_part(
          functions, source, call, split.vectors,
          {source.balanced_row(row, split.row_parts), source.balanced_row(row + 1, split.row_parts),
           panels * column / split.token_parts * step,
           std::min(panels * (column + 1) / split.token_parts * step, args.tokens)});
    }
  });
}

/// The whole call; `make_source(batch)` gives a source. `vectors`: of the widest panel, 0 takes
/// tokens one by one.
template <typename MakeSource>
void run_spmm(const KcsrFunctions& functions, int vectors, const LinearArgs& args,
              const MakeSource& make_source, const SplitCost& cost = {}) {
  const std::int64_t batch = args.weight.batch();
  const std::int64_t work = args.weight.kept() *
                            detail::ceil_div(args.tokens, functions.vector_lanes) /
                            kMinWorkPerThread;
  const std::int64_t threads =
      std::clamp(work, std::int64_t{1}, std::int64_t{std::max(args.parallel.threads, 1)});
  if (threads == 1 || batch >= threads) {
    ParallelFor parallel = args.parallel;
    if (threads == 1) parallel.run = nullptr;
    parallel_for(parallel, batch, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        auto source = make_source(b);
        run_part(functions, source, SpmmCall(args, b), vectors, {0, source.out, 0, args.tokens});
      }
    });
    return;
  }
  SpmmSplit split{1, threads, 0};
  if (vectors > 0) {
    SplitShape shape{.tokens = args.tokens,
                     .in = args.weight.in(),
                     .out = args.weight.out(),
                     .kept = args.weight.kept(),
                     .lanes = functions.vector_lanes,
                     .widest = vectors,
                     .threads = threads};
    using Source = decltype(make_source(batch));
    if constexpr (requires { Source::kRowStep; }) {
      shape.row_panels = detail::ceil_div(args.weight.out(), Source::kRowStep);
    }
    split = best_split(shape, cost);
  }
  for (std::int64_t b = 0; b < batch; ++b) run_split(functions, split, args, b, make_source);
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

/// Units cost as much as values. Of density d there are 1 - (1 - d)^n of an n-th as many, but where
/// the pattern keeps units whole.
inline double unit_seconds(std::int64_t vector_lanes, const SpmmCost& cost, int vectors,
                           std::int64_t block, int inputs, const LinearDesc& desc,
                           std::int64_t tokens, int threads) {
  LinearDesc units = desc;
  units.in = detail::ceil_div(desc.in, inputs);
  const bool whole =
      desc.pattern.kind == Pattern::Kind::kBlock && desc.pattern.block_cols % inputs == 0;
  units.density = whole ? desc.density : 1.0 - std::pow(1.0 - desc.density, inputs);
  return spmm_seconds(vector_lanes, cost, vectors, block / inputs, units, tokens, threads);
}

}  // namespace gossamer::cpu
