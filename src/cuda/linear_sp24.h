// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "cuda/common/device_info.h"
#include "gossamer/dtype.h"
#include "gossamer/linear.h"

// Y = act(X·Wᵀ + bias + residual) on a GPU, W 2:4 in tiles (core/nm24_tile.h). No allocation, no
// synchronization: every launch may be captured into a graph.
namespace gossamer::cuda {

/// How blocks divide a product among themselves; 0: the cost model chooses.
struct Sp24Cut {
  int shared_by = 0;  ///< blocks of a cluster that need the same X and each load a part of it
  int split = 0;      ///< blocks of a cluster that divide the inputs

  /// Whether a cut is one that is asked for.
  bool allows(int shared, int parts) const {
    return (shared_by == 0 || shared_by == shared) && (split == 0 || split == parts);
  }
};

/// One product. Pointers are device memory; X has the weight's dtype; strides count elements, the
/// last dimension is contiguous. Float8_e4m3fn and int8 weights have scales,
/// y = act(x_scale[token] · weight_scale[row] · sum + bias + residual); others have none.
struct LinearSp24Args {
  const std::byte* tiles = nullptr;  ///< aligned to 16 bytes
  DType dtype = DType::kBFloat16;
  DType y_dtype = DType::kBFloat16;     ///< float16, bfloat16 or float32: of Y and the residual
  DType bias_dtype = DType::kBFloat16;  ///< likewise, of the bias
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::int64_t tokens = 0;
  const void* x = nullptr;  ///< [tokens, in], any alignment
  std::int64_t x_stride = 0;
  void* y = nullptr;  ///< [tokens, out]
  std::int64_t y_stride = 0;
  const void* bias = nullptr;      ///< [out] or null
  const void* residual = nullptr;  ///< [tokens, out] or null
  std::int64_t residual_stride = 0;
  const float* x_scale = nullptr;       ///< [tokens] or null: 1
  const float* weight_scale = nullptr;  ///< [out] or null: 1
  /// Sums of float8 products in float32 throughout, not in the fewer bits of the tensor core.
  bool accurate_sums = false;
  /// The row to run where it can (tuned_row_of); 0: the cost model chooses.
  int tuned_row = 0;
  Sp24Cut cut;  ///< for tests
  Activation activation = Activation::kNone;
  void* stream = nullptr;  ///< cudaStream_t
  /// The kernel may read the weight while the previous kernel of the stream still runs. Only right
  /// where that kernel does not write the weight.
  bool weight_is_constant = false;
};

/// What the choice of a row needs to know of its block.
struct Sp24Tile {
  int tokens = 8;  ///< of a block
  /// Sums of at most 256 inputs are left to the tensor core; the rest is added in float32. Only
  /// float8 makes the difference.
  bool accurate_sums = true;
};

/// One row: a kernel instance.
struct LinearSp24Kernel {
  std::string_view name;  ///< "sm90_decode_sp24_bf16_8"
  DType dtype = DType::kBFloat16;
  Sp24Tile tile;
  /// A sentence why this row cannot compute the product on this device; empty where it can.
  std::string (*refuses)(const LinearSp24Kernel&, const LinearSp24Args&,
                         const DeviceInfo&) = nullptr;
  /// Predicted seconds.
  double (*seconds)(const LinearSp24Kernel&, const LinearSp24Args&, const DeviceInfo&) = nullptr;
  /// Enqueues it on args.stream of the current device. Throws Error(kUnsupported) with CUDA's
  /// words.
  void (*launch)(const LinearSp24Kernel&, const LinearSp24Args&, const DeviceInfo&) = nullptr;
};

/// All rows. The single source for dispatch, tests and benchmarks.
std::span<const LinearSp24Kernel> linear_sp24_kernels();

/// The row of that name, or null.
const LinearSp24Kernel* find_linear_sp24(std::string_view name);

/// How a plan names a row in four bits: its place among the rows that it may be tuned to, those of
/// its dtype and instructions that load X as the copy engine does, from 1; 0 for others and beyond
/// kMostTunedRows. The numbers mean something in the table that linear_sp24_table(dtype) tells
/// apart, by the names of its rows, from most others.
inline constexpr int kMostTunedRows = 14;
inline constexpr int kSp24Tables = 4;
int tuned_row_of(const LinearSp24Kernel& row);
int linear_sp24_table(DType dtype);

/// args.tuned_row where there is one that can run, otherwise the row with the least predicted time
/// among those that do not refuse; null where all do.
const LinearSp24Kernel* choose_linear_sp24(const LinearSp24Args& args, const DeviceInfo& device);

}  // namespace gossamer::cuda
