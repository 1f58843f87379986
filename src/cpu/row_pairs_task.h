// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/finish_task.h"

// Few tokens times a weight in row pairs, a panel of rows at a time, as plain data: instruction-set
// folders include nothing else.
namespace gossamer::cpu {

inline constexpr std::int64_t kFewAtOnce = 2;  ///< tokens of one call
inline constexpr std::int64_t kFewBlock = 64;  ///< inputs of a block

/// All blocks of inputs of one panel, float32. `values` and `cols` are the whole arrays of the
/// layout, the others begin at the panel.
struct RowPairsFewTask {
  const float* values;
  const std::uint8_t* cols;
  const std::int64_t* segments;  ///< [blocks][3]
  const std::uint8_t* rows;      ///< [blocks][rows of the panel]
  const std::uint8_t* counts;    ///< likewise
  std::int64_t block_count;
  std::int64_t in;
  const float* x;
  std::int64_t x_stride;
  FinishTask out;  ///< at most kRowPairsRows rows and kFewAtOnce tokens; `sums` is not read
};

void avx512_rowpairs_few_f32(const RowPairsFewTask& task);

}  // namespace gossamer::cpu
