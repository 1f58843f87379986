// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include "gossamer/packed_weight.h"

// Which arrays each layout has, in which order, of which dtype and shape. Everything that builds,
// reads, checks or saves a packed weight takes it from here. [batch,] stands for a leading
// dimension that is there where batch > 1. Offsets into values count elements over all batches:
// row_offsets and block_row_offsets have out + 1 entries a batch, and a batch's first equals the
// last of the batch before it.
//
//   nm       values      dtype  [batch,] out, G·N       G = ceil(in / M) groups a row
//            indices     u8     [batch,] out, bytes     bit stream a row, first bit lowest, from a
//                                                       byte boundary; a group takes either N
//                                                       ascending positions of log2(M) bits (where
//                                                       N·log2(M) <= M) or an M-bit mask
//   bitmask  bitmask     u8     [batch,] out, ceil(in/8) bit i of byte j is column 8j + i
//            values      dtype  kept                    row by row
//            row_offsets i64    [batch,] out + 1        into values
//   bsr      block_row_offsets i64 [batch,] ceil(out/R) + 1   into block_cols and values
//            block_cols  i32    blocks                  ascending in a block row
//            values      dtype  blocks, R, C            zero past the matrix's edge
//   fanin    values      dtype  [batch,] out, F         F = in - dropped_count(S, in)
//            cols        u16 where in <= 65536, otherwise i32   [batch,] out, F, ascending
//   kcsrKC   values      dtype  kept                    by batch, block of KC inputs, row, column
//            cols        u8     kept                    column inside the block, ascending in a row
//            segment_offsets u32 [batch,] ceil(in/KC), out + 1  relative to the block's offset
//            block_offsets   i64 [batch,] ceil(in/KC) + 1       into values
//            Of a convolution input c·taps + t is tap t of channel c: a block then sees few
//            channels, whose pixels stay in L1 while all taps read them. Everywhere else it is
//            t·channels + c.
//   rowpairsKC values   dtype  kept                    by batch, panel of 256 rows, block of KC
//                                                       inputs, place
//            cols        u8     columns                 in the same order, inside the block
//            rows        u8     [batch,] blocks·out     by panel, block, place: rows of the panel
//            counts      u8     [batch,] blocks·out     of those places
//            segments    i64    [batch,] panels, blocks, 3  where a panel's block begins in values
//                                                       and in cols, and how many pairs it has
//            The places of a panel's block are those of its pairs, two each, then those of rows
//            without a partner. Rows of a pair keep equally many inputs of the block. The counts of
//            a pair are the shared columns, which are stored once, and those that each row has
//            alone. Of each shared column two values, the first row's and the second's; then in
//            turns a column and value that the first has alone and one of the second's. A row
//            without a partner has its count, its columns and values. All columns of a kind ascend
//            in a row. `columns` is what cols holds: kept less the shared ones.
//   rowquadsKC values   dtype  units, 4                as rowpairsKC, of units: four neighbouring
//                                                       inputs of which a row keeps one or more
//            cols        u8     columns                 likewise, the number of a four in its block
//            rows_counts u8     2, batch·blocks·out     rows, then counts, of units
//            masks       u8     columns                 bit i: input i is kept. The low nibble is
//                                                       the row's or the first row's, the high one
//                                                       of a shared column the second row's
//            segments                                   likewise, units instead of values
//            corrections i32    [batch,] out            128 times the sum of a row's values where
//                                                       they are int8; none otherwise
//            Inputs of a unit that are not kept are zeros. `kept` counts inputs, not units.
//   nm24_pairs values   dtype  [batch,] ceil(out/2), G·4   rows 2p and 2p + 1 share a line: of each
//                                                       group the first row's two values, then the
//                                                       second's; G = ceil(in/4) rounded up to 8
//            meta        u8     [batch,] ceil(out/2), G  positions i0 | i1<<2 of the first row in
//                                                       the low nibble, of the second in the high
//            Groups past the last column and the missing row of an odd `out` are empty ones:
//            positions 0 and 1, zero values.
//
//   nm24_tiles tiles    u8     [batch,] ceil(out/64), ceil(in/T), bytes   T = 64 inputs and 4608
//                                                       bytes a tile for 16-bit values, 128 and
//                                                       5120 for 8-bit ones (core/nm24_tile.h); at
//                                                       least one tile each way. Values past the
//                                                       matrix are zero, groups there empty.
//
// Every array starts at a multiple of 64 bytes and at least 64 zero bytes follow it, so that a
// kernel may load a whole vector from any element. All padding is zero.
namespace gossamer::detail {

struct NmArrays {
  static constexpr int kValues = 0, kIndices = 1;
};
struct BitmaskArrays {
  static constexpr int kBitmask = 0, kValues = 1, kRowOffsets = 2;
};
struct BsrArrays {
  static constexpr int kBlockRowOffsets = 0, kBlockCols = 1, kValues = 2;
};
struct FanInArrays {
  static constexpr int kValues = 0, kCols = 1;
};
struct KcsrArrays {
  static constexpr int kValues = 0, kCols = 1, kSegmentOffsets = 2, kBlockOffsets = 3;
};

struct RowPairsArrays {
  static constexpr int kValues = 0, kCols = 1, kRows = 2, kCounts = 3, kSegments = 4;
  /// Of units of several inputs, whose kRows holds rows and counts.
  static constexpr int kMasks = 3, kCorrections = 5;
};
/// Rows of a panel of row pairs; a byte numbers them.
inline constexpr std::int64_t kRowPairsPanel = 256;
/// Numbers of a panel's block in `segments`.
struct RowPairsSegment {
  static constexpr int kValue = 0, kCol = 1, kPairs = 2, kCount = 3;
};

struct Nm24Arrays {
  static constexpr int kValues = 0, kMeta = 1;
};
struct Nm24TilesArrays {
  static constexpr int kTiles = 0;
};

inline constexpr std::int64_t kArrayAlignment = 64;
inline constexpr std::int64_t kArraySlack = 64;

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

/// How an N:M row lies in its two arrays.
struct NmShape {
  std::int64_t n = 0;
  std::int64_t m = 0;
  std::int64_t groups = 0;       ///< of one row
  int position_bits = 0;         ///< log2(M); of one position where `is_mask` is false
  bool is_mask = false;          ///< an M-bit mask a group instead of N positions
  int group_bits = 0;            ///< of one group in `indices`
  std::int64_t index_bytes = 0;  ///< of one row of `indices`
};

inline NmShape nm_shape(const Pattern& pattern, std::int64_t in) {
  NmShape s;
  s.n = pattern.n;
  s.m = pattern.m;
  s.groups = ceil_div(in, s.m);
  s.position_bits = std::countr_zero(static_cast<std::uint32_t>(pattern.m));
  s.is_mask = s.n * s.position_bits > s.m;
  s.group_bits = static_cast<int>(s.is_mask ? s.m : s.n * s.position_bits);
  s.index_bytes = ceil_div(s.groups * s.group_bits, 8);
  return s;
}

/// The kept inputs of every row of a fan-in pattern.
inline std::int64_t fan_in_count(const Pattern& pattern, std::int64_t in) {
  return in - dropped_count(pattern.sparsity, in);
}

/// The dtype of a fan-in weight's columns.
inline DType fan_in_col_dtype(std::int64_t in) {
  return in <= 65536 ? DType::kUInt16 : DType::kInt32;
}

/// The inputs of one block of a K-blocked CSR layout; 0 for other layouts.
inline std::int64_t kcsr_block(Layout layout) {
  switch (layout) {
    case Layout::kKcsr64:
      return 64;
    case Layout::kKcsr128:
      return 128;
    case Layout::kKcsr256:
      return 256;
    default:
      return 0;
  }
}

/// The inputs of one block of a layout of row pairs; 0 for other layouts.
inline std::int64_t row_pairs_block(Layout layout) {
  switch (layout) {
    case Layout::kRowPairs64:
      return 64;
    case Layout::kRowPairs128:
      return 128;
    case Layout::kRowQuads512:
      return 512;
    default:
      return 0;
  }
}

/// The neighbouring inputs that a column of row pairs stands for.
inline std::int64_t row_pairs_unit(Layout layout) { return layout == Layout::kRowQuads512 ? 4 : 1; }

/// The counts of all places of row pairs, as many as there are rows of places.
inline const std::uint8_t* row_pairs_counts(const PackedView& p) {
  if (row_pairs_unit(p.layout()) == 1) return p.array<std::uint8_t>(RowPairsArrays::kCounts);
  return p.array<std::uint8_t>(RowPairsArrays::kRows) +
         p.header().arrays[RowPairsArrays::kRows].bytes / 2;
}

/// 128 times the sum of a row's int8 values, in 32 bits: what quantized kernels whose inputs are
/// stored plus 128 have to subtract.
inline std::int32_t row_correction(const std::int8_t* values, std::int64_t count) {
  std::uint32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<std::uint32_t>(values[i]);
  return static_cast<std::int32_t>(sum * 128u);
}

/// Where a convolution's input lies when they are taken channel by channel, and back.
struct ChannelMajor {
  std::int64_t taps = 1;
  std::int64_t channels = 1;
  std::int64_t to(std::int64_t by_tap) const {
    return by_tap % channels * taps + by_tap / channels;
  }
  std::int64_t from(std::int64_t by_channel) const {
    return by_channel % taps * channels + by_channel / taps;
  }
};

/// The groups of four inputs that a row pair of nm24_pairs has, padding included.
inline std::int64_t nm24_groups(std::int64_t in) { return ceil_div(ceil_div(in, 4), 8) * 8; }

/// One array of a layout. `shape` holds `rank` sizes, the batch dimension included where it is > 1.
struct ArraySpec {
  std::string_view name;
  DType dtype = DType::kUInt8;
  std::array<std::int64_t, 4> shape{};
  int rank = 0;
  std::int64_t bytes = 0;
  std::int64_t offset = 0;  ///< from the start of the header
};

/// All arrays of a packed weight and where they lie.
struct LayoutSpec {
  int count = 0;
  std::array<ArraySpec, PackedHeader::kMaxArrays> arrays{};
  std::int64_t kept = 0;
  std::int64_t total_bytes = 0;
};

/// The arrays of a weight with `kept` stored values; `nm` and `fanin` compute `kept` themselves.
/// For `bsr` it counts whole blocks. Throws Error(kInvalidArgument) where dimensions or `kept`
/// cannot be, the layout cannot hold the pattern, and Error(kUnsupported) where a size overflows.
LayoutSpec layout_spec(const FormatInfo& info, std::int64_t kept);

/// What row pairs store beside the number of kept positions: units, and columns, half as many to as
/// many. Negative: the most.
struct PairSizes {
  std::int64_t units = -1;
  std::int64_t columns = -1;
};

/// The same of row pairs of these sizes.
LayoutSpec layout_spec(const FormatInfo& info, std::int64_t kept, const PairSizes& sizes);

/// What the table of arrays says of them; it is not checked. Nothing of other layouts.
PairSizes pair_sizes(const PackedHeader& header);

/// Why `layout` cannot hold the pattern, naming what can; empty where it does.
std::string layout_fault(Layout layout, const Pattern& pattern);

/// The header of a weight with these arrays; no plan yet.
PackedHeader make_header(const FormatInfo& info, const LayoutSpec& spec);

/// What a header says about its weight.
FormatInfo info_of(const PackedHeader& header);

}  // namespace gossamer::detail
