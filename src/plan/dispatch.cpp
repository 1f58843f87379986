// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>

#include "core/fail.h"
#include "gossamer/linear.h"
#include "plan/kernel_table.h"
#include "plan/planned_layout.h"
#include "plan/probes.h"

namespace gossamer {
namespace {

using detail::fail;
using plan::TableSnapshot;

/// Everything that the choice of a row depends on, compared byte by byte. The header's first bytes
/// hold the layout, dtype, pattern and sizes of the weight.
struct DecisionKey {
  const TableSnapshot* table;
  std::array<std::byte, offsetof(PackedHeader, arrays)> shape;
  std::uint32_t planned;
  std::int32_t bucket;
  std::int32_t threads;
  std::uint32_t epilogue;
};
static_assert(std::has_unique_object_representations_v<DecisionKey>);

struct Decision {
  DecisionKey key;
  const LinearKernel* row;
};

// A thread keeps its last answers, so that a planned call costs a few compares and a foreign plan
// one evaluation of the cost model per weight shape and bucket. Power of two; 16 KiB a thread.
constexpr std::size_t kDecisions = 128;

std::size_t decision_slot(const DecisionKey& key, const PackedHeader& header) {
  std::uint64_t hash = static_cast<std::uint64_t>(header.out) * 0x9e3779b97f4a7c15u;
  hash ^= static_cast<std::uint64_t>(header.in) * 0xc2b2ae3d27d4eb4fu;
  hash ^= static_cast<std::uint64_t>(header.kept) * 0x165667b19e3779f9u;
  hash ^= (std::uint64_t{key.planned} << 8) ^ static_cast<std::uint64_t>(key.bucket);
  hash *= 0x9e3779b97f4a7c15u;
  return static_cast<std::size_t>(hash >> 32) % kDecisions;
}

bool computes(const LinearKernel& row, Layout layout, const LinearDesc& desc) {
  return row.layout == layout && why_not(row, desc, host_machine()).empty();
}

[[noreturn]] void fail_unsupported(Layout layout, const LinearDesc& desc,
                                   const TableSnapshot& table) {
  std::string reasons;
  for (const LinearKernel& row : table.rows) {
    if (row.layout != layout) continue;
    const std::string reason = why_not(row, desc, host_machine());
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", row.name, reason);
  }
  fail(ErrorCode::kUnsupported,
       "no kernel computes a {} x {} weight of {} in layout {} on {}: {}; convert it to another "
       "layout or unpack it and compute dense",
       desc.out, desc.in, dtype_name(desc.weight_dtype), layout_name(layout), host_machine().name,
       reasons.empty() ? "the kernel table has no row of this layout" : reasons);
}

const LinearKernel& decide(const PackedView& weight, const DecisionKey& key,
                           const Epilogue& epilogue) {
  const LinearDesc desc = describe(weight, epilogue);
  const LinearKernel* forced = plan::environment_linear_row();
  if (forced != nullptr && computes(*forced, weight.layout(), desc)) return *forced;
  const LinearKernel* planned = key.table->find(key.planned);
  if (planned != nullptr && computes(*planned, weight.layout(), desc)) return *planned;

  const std::int64_t tokens = plan::largest_probe(key.bucket);
  const LinearKernel* best = nullptr;
  double best_seconds = std::numeric_limits<double>::infinity();
  for (const LinearKernel& row : key.table->rows) {
    if (!computes(row, weight.layout(), desc)) continue;
    const double seconds = row.seconds(desc, host_machine(), tokens, key.threads);
    if (best != nullptr && !(seconds < best_seconds)) continue;
    best = &row;
    best_seconds = seconds;
  }
  if (best == nullptr) fail_unsupported(weight.layout(), desc, *key.table);
  return *best;
}

// The sparse row for a call; a planned "dense" counts as no plan.
const LinearKernel& sparse_row(const PackedView& weight, std::int64_t tokens, int threads,
                               const Epilogue& epilogue) {
  const PackedHeader& header = weight.header();
  DecisionKey key;
  key.table = &plan::table_snapshot();
  std::memcpy(key.shape.data(), &header, key.shape.size());
  key.bucket = token_bucket(tokens);
  key.planned = header.planned(key.bucket);
  key.threads = std::max(threads, 1);
  key.epilogue = (epilogue.bias ? 1u : 0u) | (epilogue.residual ? 2u : 0u) |
                 (epilogue.quantized ? 4u : 0u) |
                 (static_cast<std::uint32_t>(epilogue.activation) << 3);

  thread_local std::array<Decision, kDecisions> decisions{};
  Decision& slot = decisions[decision_slot(key, header)];
  if (std::memcmp(&slot.key, &key, sizeof(key)) == 0) return *slot.row;
  const LinearKernel& row = decide(weight, key, epilogue);
  slot = {key, &row};
  return row;
}

// Rows of Y that would lie on each other are a sign of a stride in bytes, of another tensor, or of
// none at all. The rows form a grid [batch, tokens] whose steps may come in either order.
bool rows_overlap(std::int64_t row, std::int64_t count_a, std::int64_t stride_a,
                  std::int64_t count_b, std::int64_t stride_b) {
  if (count_a <= 1) return count_b > 1 && stride_b < row;
  if (count_b <= 1) return stride_a < row;
  if (stride_a > stride_b) return rows_overlap(row, count_b, stride_b, count_a, stride_a);
  return stride_a < row || stride_b < (count_a - 1) * stride_a + row;
}

void check_pointer(const void* pointer, std::string_view name) {
  if (pointer == nullptr) fail(ErrorCode::kInvalidArgument, "run_linear: {} is null", name);
}

// What is only read may overlap: a row stride of 0 is one row for all tokens.
void check_strides(std::string_view name, std::int64_t stride, std::int64_t batch_stride) {
  if (stride >= 0 && batch_stride >= 0) return;
  fail(ErrorCode::kInvalidArgument,
       "run_linear: {} has a row stride of {} and a batch stride of {} elements; neither may be "
       "negative; copy {} to contiguous memory first",
       name, stride, batch_stride, name);
}

void check_arguments(const LinearArgs& args) {
  const PackedView& w = args.weight;
  check_pointer(args.y, "y");
  check_strides("y", args.y_stride, args.y_batch_stride);
  if (rows_overlap(w.out(), args.tokens, args.y_stride, w.batch(), args.y_batch_stride)) {
    fail(ErrorCode::kInvalidArgument,
         "run_linear: y [{}, {}, {}] has a row stride of {} and a batch stride of {} elements, so "
         "its rows overlap; strides count elements, contiguous are {} and {}",
         w.batch(), args.tokens, w.out(), args.y_stride, args.y_batch_stride, w.out(),
         args.tokens * w.out());
  }
  if (w.in() > 0) {
    check_pointer(args.x, "x");
    check_strides("x", args.x_stride, args.x_batch_stride);
  }
  if (args.residual != nullptr) {
    check_strides("residual", args.residual_stride, args.residual_batch_stride);
  }
  if (args.x_scale != nullptr && w.dtype() != DType::kInt8) {
    fail(ErrorCode::kInvalidArgument,
         "run_linear: x_scale is given, so X is int8, but the weight is {}; quantize the weight "
         "too, "
         "or leave x_scale null",
         dtype_name(w.dtype()));
  }
  if (args.weight_scale != nullptr && args.x_scale == nullptr) {
    fail(ErrorCode::kInvalidArgument,
         "run_linear: weight_scale is given without x_scale; scales belong to quantized calls, "
         "whose X is int8");
  }
  // The reciprocal of a subnormal one is infinite.
  const bool is_scale = std::isnormal(args.y_scale) && args.y_scale > 0.0f;
  if (args.y_scale != 0.0f && (!is_scale || args.x_scale == nullptr)) {
    fail(ErrorCode::kInvalidArgument,
         "run_linear: y_scale is {}{}; a quantized call, whose X is int8, takes a finite number "
         "above 1.2e-38 for an int8 Y, or 0 for a float32 one",
         args.y_scale, args.x_scale == nullptr ? " without x_scale" : "");
  }
  const auto activation = static_cast<std::int32_t>(args.activation);
  if (activation < 0 || activation >= kActivationCount) {
    fail(ErrorCode::kInvalidArgument,
         "run_linear: activation is {}; accepted are 0 (none), 1 (relu), 2 (gelu), 3 (gelu by "
         "tanh), 4 (silu) and 5 (relu2)",
         activation);
  }
}

}  // namespace

const LinearKernel* choose_kernel(const PackedView& weight, std::int64_t tokens, int threads) {
  static const std::string& forced = plan::environment_kernel();
  static const std::uint32_t dense = kernel_hash(kDenseKernel);
  if (forced == kDenseKernel) return nullptr;
  const bool planned_dense = weight.header().planned(token_bucket(tokens)) == dense;
  if (planned_dense && forced.empty()) return nullptr;
  // An int8 weight has no products but quantized ones.
  const Epilogue epilogue{.quantized = weight.dtype() == DType::kInt8};
  const PackedView layout = plan::planned_layout(weight, tokens);
  const LinearKernel& row = sparse_row(layout, tokens, threads, epilogue);
  return planned_dense && row.name != forced ? nullptr : &row;
}

void run_linear(const LinearArgs& args) {
  if (args.tokens < 0) {
    fail(ErrorCode::kInvalidArgument, "run_linear: tokens is {}; it must be 0 or more",
         args.tokens);
  }
  if (args.tokens == 0 || args.weight.out() == 0 || args.weight.batch() == 0) return;
  check_arguments(args);
  if (args.weight.in() == 0) return reference_linear(args);  // no product: act(bias + residual)
  const Epilogue epilogue{args.bias != nullptr, args.residual != nullptr, args.activation,
                          args.x_scale != nullptr};
  const PackedView layout = plan::planned_layout(args.weight, args.tokens);
  const LinearKernel& row = sparse_row(layout, args.tokens, args.parallel.threads, epilogue);
  if (layout.data() == args.weight.data()) return row.run(args);
  LinearArgs call = args;
  call.weight = layout;
  row.run(call);
}

}  // namespace gossamer
