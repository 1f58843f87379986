// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "gossamer/dtype.h"

// What pruning does on a GPU. Every pointer is device memory, rows are contiguous, every call only
// enqueues on `stream`.
namespace gossamer::cuda {

/// Scores of which N of every M neighbours are kept.
struct GroupScores {
  const void* scores = nullptr;   ///< [rows, cols], contiguous
  DType dtype = DType::kFloat32;  ///< float32 or float64
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  int n = 0;
  int m = 0;                 ///< at most 64
  std::int64_t segment = 0;  ///< groups start anew after so many columns; a divisor of cols
};

/// mask [rows, cols]: the N highest of each group, the lower column among equals, as select_masks
/// of include/gossamer/mask.h finds them. NaN counts as higher than any number.
void select_groups(const GroupScores& groups, bool* mask, void* stream);

/// Stacked matrices of scores, contiguous.
struct TileScores {
  const void* scores = nullptr;   ///< [batch, rows, cols]
  DType dtype = DType::kFloat32;  ///< float32 or float64, read as float32
  std::int64_t batch = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// Where every score is a finite number.
inline constexpr std::uint64_t kNoBadRow = ~std::uint64_t{0};

/// mask [batch, rows, cols]: the transposable 2:4 mask with the highest sum of scores of every 4×4
/// tile, bit for bit that of transposable_mask (include/gossamer/solve.h). `bad_row` (device, set
/// by this call) is the first row, counted over all batches, with a score that is NaN or infinite,
/// or kNoBadRow.
void transposable_24(const TileScores& scores, bool* mask, std::uint64_t* bad_row, void* stream);

/// The most columns that one call of sweep_block takes.
inline constexpr int kMaxSweptColumns = 128;

/// Columns [begin, begin + width) of a weight in the column sweep of SparseGPT; pointers are to the
/// first of these columns.
struct SweptBlock {
  float* weight = nullptr;  ///< in: with what the columns to the left owed; out: zero where dropped
  std::int64_t weight_stride = 0;
  const float* factor = nullptr;  ///< the block on the diagonal of U
  std::int64_t factor_stride = 0;
  bool* mask = nullptr;  ///< read where m is 0, else written
  std::int64_t mask_stride = 0;
  float* owed = nullptr;  ///< [rows, width], w/U_jj of every dropped weight, else 0; written
  std::int64_t rows = 0;
  int width = 0;           ///< 1 to kMaxSweptColumns
  int n = 0;               ///< kept of every M
  int m = 0;               ///< 0: the mask is given; at most 64
  std::int64_t begin = 0;  ///< of the block in the weight; a group begins there
  std::int64_t segment = 0;
};

/// The sweep of obs_sweep (include/gossamer/solve.h) inside a block, every row for itself, in the
/// core's order of operations. What the block owes to the columns right of it is not subtracted.
void sweep_block(const SweptBlock& block, void* stream);

}  // namespace gossamer::cuda
