// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

// The steps of K-blocked CSR kernels, as plain data: instruction-set folders include nothing else.
// A panel is `lanes` tokens, a whole number of vectors; a tile is one block of inputs for one
// panel, transposed.
namespace gossamer::cpu {

/// tile[k][t] = x[t][k] for `columns` inputs; tokens past the last are zero. The tile has room for
/// `columns` rounded up to 8.
struct KcsrPackTask {
  const float* x;
  std::int64_t x_stride;
  std::int64_t tokens;  ///< 1 to lanes
  std::int64_t columns;
  float* tile;
  std::int64_t lanes;
};

/// sums[row][:] += Σ value · tile[col][:] over the row's kept values in one block of inputs.
struct KcsrAddTask {
  const float* values;            ///< of the block
  const std::uint8_t* cols;       ///< of the block
  const std::uint32_t* segments;  ///< [out + 1] of the block
  std::int64_t row_begin;
  std::int64_t row_end;
  const float* tile;  ///< [KC][lanes]; for a single token, X itself
  float* sums;        ///< [row_end − row_begin][lanes]
  bool first;         ///< sums hold nothing yet
  const float* bias;  ///< [out] or null; enters with the first block
};

/// y[t][row] = act(sums[row][t] + residual[t][row]).
struct KcsrStoreTask {
  const float* sums;
  std::int64_t rows;
  std::int64_t lanes;
  std::int64_t tokens;
  float* y;  ///< of the first row and token
  std::int64_t y_stride;
  const float* residual;  ///< likewise, or null
  std::int64_t residual_stride;
  bool relu;
};

/// What a driver needs of an instruction set. `add_one` and `store_one` may be null. `add[i]` takes
/// panels of kPanelVectors[i] vectors; `add_one` takes a single token and keeps one vector of
/// partial sums a row, which `store_one` adds up.
inline constexpr int kPanelVectors[] = {1, 2, 3, 4, 6, 8};
inline constexpr int kPanelWidths = 6;
struct KcsrFunctions {
  std::int64_t vector_lanes;
  void (*pack)(const KcsrPackTask&);
  void (*add[kPanelWidths])(const KcsrAddTask&);
  void (*store)(const KcsrStoreTask&);
  void (*add_one)(const KcsrAddTask&);
  void (*store_one)(const KcsrStoreTask&);
};

extern const KcsrFunctions generic_spmm_kcsr_f32;
extern const KcsrFunctions avx2_spmm_kcsr_f32;
extern const KcsrFunctions avx512_spmm_kcsr_f32;

}  // namespace gossamer::cpu
