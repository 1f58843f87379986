// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cpu/finish_task.h"

// The steps of K-blocked kernels, as plain data: instruction-set folders include nothing else.
// A panel is `lanes` tokens, a whole number of vectors; a tile is one block of inputs for one
// panel, transposed. X, Y, bias, residual and the kept values have the element type of the
// functions; tiles and sums are float32.
namespace gossamer::cpu {

/// What a tile's inputs are rounded up to: it has room for as many.
inline constexpr std::int64_t kTileRounding = 16;

/// tile[k][t] = x[t][k] for `columns` inputs; tokens past the last are zero.
struct KcsrPackTask {
  const void* x;
  std::int64_t x_stride;
  std::int64_t tokens;  ///< 1 to lanes
  std::int64_t columns;
  float* tile;
  std::int64_t lanes;
};

/// sums[row][:] += Σ value · tile[col][:] over the rows' kept values in one block of inputs. Row r
/// keeps values [begins[r], ends[r]).
struct KcsrAddTask {
  const void* values;
  const std::uint8_t* cols;
  const std::uint32_t* begins;
  const std::uint32_t* ends;
  std::int64_t rows;
  const void* tile;      ///< float [KC][lanes]; for a single token, X itself
  float* sums;           ///< [rows][lanes]
  bool first;            ///< sums hold nothing yet
  std::int64_t columns;  ///< of the tile

  // Blocks only: begins and ends count blocks, one pair for every block row; `values` are
  // [blocks][block_rows][block_cols] and `cols` is null.
  const std::int32_t* block_col;  ///< of every block, counting from input 0
  std::int64_t block_rows;
  std::int64_t block_cols;
  std::int64_t first_input;  ///< of the tile

  // Tile registers and the bitmask format: `cols` is null, the bits are read instead. Of the first
  // row; `in` is the length of a row, `first_input` as above.
  const std::uint8_t* bits;
  std::int64_t row_bytes;
  std::int64_t in;

  // Row pairs only, whose begins and ends are null: `values` and `cols` are the whole arrays, these
  // begin at the rows' first panel of kRowPairsRows; the rows end with a panel.
  const std::int64_t* pair_segments;  ///< [panels][blocks][3]
  const std::uint8_t* pair_rows;      ///< [panels][blocks][rows of the panel]
  const std::uint8_t* pair_counts;    ///< likewise
  std::int64_t block_index;
  std::int64_t block_count;
};

/// `out.y` from sums[row][t]: `out.sums` is not read.
struct KcsrStoreTask {
  const float* sums;
  std::int64_t lanes;
  FinishTask out;

  // Quantized calls only: DequantizeTask's, of the first row and token.
  const std::int32_t* corrections = nullptr;
  const float* x_scale = nullptr;
  const float* weight_scale = nullptr;
};

/// What a driver needs of an instruction set and an element type. `pack` returns whether `add` may
/// be called on the tile; where it may not, because a product with a pruned weight would not be
/// zero, `add_careful` is. `add[i]` takes panels of kPanelVectors[i] vectors; `add_one` takes a
/// single token and keeps one vector of partial sums a row, which `store_one` adds up. The last
/// three may be null.
inline constexpr int kPanelVectors[] = {1, 2, 3, 4, 6, 8};
inline constexpr int kPanelWidths = 6;
struct KcsrFunctions {
  std::int64_t vector_lanes;
  bool (*pack)(const KcsrPackTask&);
  void (*add[kPanelWidths])(const KcsrAddTask&);
  void (*store)(const KcsrStoreTask&);
  void (*add_one)(const KcsrAddTask&);
  void (*store_one)(const KcsrStoreTask&);
  void (*add_careful[kPanelWidths])(const KcsrAddTask&);
  std::int64_t word_inputs = 1;  ///< inputs in 32 bits of a tile
};

extern const KcsrFunctions generic_spmm_f32;
/// For layouts of row pairs, whose panels have kRowPairsRows rows.
inline constexpr std::int64_t kRowPairsRows = 256;
extern const KcsrFunctions generic_spmm_rowpairs_f32;
extern const KcsrFunctions avx2_spmm_rowpairs_f32;
extern const KcsrFunctions avx512_spmm_rowpairs_f32;
extern const KcsrFunctions avx2_spmm_f32;
extern const KcsrFunctions avx2_spmm_bf16;
extern const KcsrFunctions avx2_spmm_f16;
extern const KcsrFunctions avx512_spmm_f32;
extern const KcsrFunctions avx512_spmm_bf16;
extern const KcsrFunctions avx512_spmm_f16;
/// Values are pairs of bfloat16 in 32 bits, tiles hold pairs of inputs likewise, columns count
/// pairs. What is pruned of a pair is +0; a kept zero is -0.
extern const KcsrFunctions avx512bf16_spmm_pairs;
/// Blocks of at most kMaxBlockRows rows; sums have room for whole blocks.
inline constexpr std::int64_t kMaxBlockRows = 256;
extern const KcsrFunctions avx2_spmm_blocks_f32;
extern const KcsrFunctions avx2_spmm_blocks_bf16;
extern const KcsrFunctions avx2_spmm_blocks_f16;
extern const KcsrFunctions avx512_spmm_blocks_f32;
extern const KcsrFunctions avx512_spmm_blocks_bf16;
extern const KcsrFunctions avx512_spmm_blocks_f16;
/// Blocks of an even number of columns.
extern const KcsrFunctions avx512bf16_spmm_block_pairs;

/// Values are four int8 in 32 bits, tiles hold four inputs likewise, each plus 128 so that it is
/// unsigned; columns count fours. Sums are 32-bit integers, 128 times the row's weights too large:
/// the store subtracts that. For at most 65536 inputs.
inline constexpr std::int64_t kMaxQuantizedInputs = 65536;
extern const KcsrFunctions avx512vnni_spmm_quads;
/// The same of row pairs.
extern const KcsrFunctions avx512vnni_spmm_rowquads;
/// Blocks of a number of columns that four divides.
extern const KcsrFunctions avx512vnni_spmm_block_quads;

/// Values are pairs of int8 widened to 16 bits, tiles hold inputs likewise; sums are 32-bit
/// integers.
extern const KcsrFunctions avx2_spmm_int8_pairs;
/// Of convolutions, which only add.
extern const KcsrFunctions generic_spmm_int8_pairs;

/// Turns the bits of some rows into what KcsrAddTask reads: cols[i] is the column, inside its block
/// of inputs, of the i-th kept value of these rows; segments[k·rows + r] says where block k of row
/// r begins, and segments[(k + 1)·rows + r] where it ends.
struct BitmaskIndexTask {
  const std::uint8_t* bits;  ///< of the first row; every row takes ceil(in / 8) bytes
  std::int64_t rows;
  std::int64_t in;
  std::int64_t block;       ///< a multiple of 64, at most 256
  std::uint8_t* cols;       ///< room for 64 more than the rows keep
  std::uint32_t* segments;  ///< [ceil(in / block) + 1][rows]
};

void avx2_bitmask_index(const BitmaskIndexTask& task);
void avx512vbmi2_bitmask_index(const BitmaskIndexTask& task);

/// The same for units of two or four inputs, a unit being listed where any of its inputs is kept.
struct BitmaskUnitTask {
  const std::uint8_t* bits;
  const void* values;  ///< of the first row
  std::int64_t rows;
  std::int64_t in;
  std::int64_t block;         ///< inputs, a multiple of 64, at most 256 units
  std::uint32_t* units;       ///< room for 16 more than the rows have
  std::uint8_t* cols;         ///< likewise
  std::uint32_t* segments;    ///< [ceil(in / block) + 1][rows], counting units
  std::int32_t* corrections;  ///< [rows]: 128 times the sum of the row's weights
};

/// Pairs of bfloat16, as avx512bf16_spmm_pairs takes them; no corrections.
void avx512bf16_bitmask_pairs(const BitmaskUnitTask& task);
/// Fours of int8.
void avx512vnni_bitmask_quads(const BitmaskUnitTask& task);
/// Pairs of int8, each widened to 16 bits; no corrections.
void avx2_bitmask_int8_pairs(const BitmaskUnitTask& task);
void generic_bitmask_int8_pairs(const BitmaskUnitTask& task);

/// AMX. Rows are taken in groups of 16: sums have room for whole groups. Tiles are those of pairs
/// of bfloat16 and of fours of int8, the latter as they are in X.
extern const KcsrFunctions amx_bitmask_bf16;
extern const KcsrFunctions amx_bitmask_int8;
/// The same, expanding and multiplying side by side.
extern const KcsrFunctions amx_overlapped_bf16;
extern const KcsrFunctions amx_overlapped_int8;
/// Blocks of a number of rows that 16 divides and of a number of bytes a row that 64 divides.
extern const KcsrFunctions amx_blocks_bf16;
extern const KcsrFunctions amx_blocks_int8;
/// The segments of an index; `cols` is not written.
void amx_count_kept(const BitmaskIndexTask& task);

/// corrections[row] = 128 times the sum of the row's weights, of rows in blocks.
struct BlockSumsTask {
  const std::int8_t* values;    ///< [blocks][block_rows][block_cols], of the whole weight
  const std::int64_t* offsets;  ///< of the first block row
  std::int64_t block_rows;
  std::int64_t block_cols;
  std::int64_t rows;
  std::int32_t* corrections;
};

void avx512vnni_block_sums(const BlockSumsTask& task);

/// Where blocks of one row and two or four columns lie, tile by tile: cols[i] is the place in its
/// tile of the i-th block of these rows; segments as above, counting blocks.
struct BlockIndexTask {
  const std::int64_t* offsets;  ///< [rows + 1] into block_col
  const std::int32_t* block_col;
  std::int64_t rows;
  std::int64_t tiles;
  std::int64_t blocks_per_tile;  ///< a power of two, at most 256
  std::uint8_t* cols;            ///< room for 16 more than there are blocks
  std::uint32_t* segments;       ///< [tiles + 1][rows]
};

void avx512_block_index(const BlockIndexTask& task);

}  // namespace gossamer::cpu
