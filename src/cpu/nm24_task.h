// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/finish_task.h"

namespace gossamer::cpu {

/// Part of Y = act(X·Wᵀ + bias + residual) with W in the layout nm24_pairs: rows [2·pair_begin,
/// 2·pair_end), at most 8 tokens, one chunk of the columns. Plain data: instruction-set folders
/// include it.
struct Nm24Task {
  const float* values;         ///< of the first column group of this chunk, pair 0
  const std::uint8_t* meta;    ///< likewise
  std::int64_t values_stride;  ///< floats from one pair to the next
  std::int64_t meta_stride;    ///< bytes from one pair to the next
  std::int64_t groups;         ///< column groups in this chunk, a multiple of 8
  std::int64_t pair_begin;
  std::int64_t pair_end;
  std::int64_t out;  ///< rows of the whole weight: the last pair of an odd number has one
  const float* x;    ///< of this chunk's first column; 4·groups columns may be read
  std::int64_t x_stride;
  std::int64_t tokens;  ///< 1 to 8
  float* y;
  std::int64_t y_stride;
  bool first_chunk;  ///< Y holds nothing yet; bias and residual come now
  bool last_chunk;   ///< the activation comes now
  const float* bias;
  const float* residual;
  std::int64_t residual_stride;
  Activation activation;
};

void generic_linear_nm24_f32(const Nm24Task& task);
void avx2_linear_nm24_f32(const Nm24Task& task);
void avx512_linear_nm24_f32(const Nm24Task& task);

}  // namespace gossamer::cpu
