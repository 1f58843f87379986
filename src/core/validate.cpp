// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cstring>
#include <limits>

#include "core/fail.h"
#include "core/half.h"
#include "core/layouts.h"
#include "core/malformed.h"
#include "core/nm24_tile.h"
#include "core/nm_group.h"
#include "core/row_pairs.h"
#include "core/validate.h"
#include "gossamer/packed_weight.h"

namespace gossamer {
namespace {

using namespace detail;  // NOLINT(google-build-using-namespace): its own implementation

/// Offsets must begin at `first`, never fall and end at `last`.
void check_offsets(const std::int64_t* offsets, std::int64_t count, std::int64_t first,
                   std::string_view name) {
  if (offsets[0] != first) malformed("{}: {} where {} is expected", name, offsets[0], first);
  for (std::int64_t i = 1; i < count; ++i) {
    if (offsets[i] < offsets[i - 1]) {
      malformed("{}: {} follows {}", name, offsets[i], offsets[i - 1]);
    }
  }
}

/// Columns must ascend strictly and end below `limit`.
template <typename Col>
void check_cols(const Col* cols, std::int64_t count, std::int64_t limit, std::int64_t row) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (cols[i] < 0 || cols[i] >= limit || (i > 0 && cols[i] <= cols[i - 1])) {
      malformed("row {}: column {} at place {}; columns must ascend and be less than {}", row,
                std::int64_t{cols[i]}, i, limit);
    }
  }
}

/// Elements [begin, end) of an array of values must be zero.
void check_zero_values(const PackedView& p, int array, std::int64_t begin, std::int64_t end,
                       std::int64_t row) {
  const std::int64_t bytes = dtype_bytes(p.dtype());
  const std::byte* values = p.array(array);
  if (all_zero(values + begin * bytes, values + end * bytes)) return;
  malformed("row {}: a value past the last column is not zero", row);
}

void check_nm_row(const PackedView& p, const NmShape& shape, std::int64_t row,
                  const std::uint8_t* bits) {
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    const std::uint64_t mask = nm_group_mask(shape, bits, g);
    const std::int64_t at = (row * shape.groups + g) * shape.n;
    if (std::popcount(mask) != shape.n ||
        nm_group_code(shape, mask) != read_bits(bits, g * shape.group_bits, shape.group_bits)) {
      malformed("row {}, group {}: the positions are not {} ascending ones", row, g, shape.n);
    }
    const std::int64_t width = std::min(shape.m, p.in() - g * shape.m);
    if (width == shape.m) continue;
    const int inside = std::popcount(mask & ((1ull << width) - 1));
    check_zero_values(p, NmArrays::kValues, at + inside, at + shape.n, row);
  }
  const std::int64_t used = shape.groups * shape.group_bits;
  const int rest = static_cast<int>(shape.index_bytes * 8 - used);
  if (read_bits(bits, used, rest) != 0) malformed("row {}: bits after the last group", row);
}

void validate_nm(const PackedView& p) {
  if (p.kept() == 0) return;  // rows without contents may be many
  const NmShape shape = nm_shape(p.pattern(), p.in());
  const auto* bits = p.array<std::uint8_t>(NmArrays::kIndices);
  for (std::int64_t row = 0; row < p.batch() * p.out(); ++row) {
    check_nm_row(p, shape, row, bits + row * shape.index_bytes);
  }
}

void check_bitmask_row(const std::uint8_t* bits, std::int64_t in, std::int64_t row,
                       std::int64_t expected) {
  std::int64_t kept = 0;
  const std::int64_t bytes = ceil_div(in, 8);
  for (std::int64_t i = 0; i < bytes; ++i) kept += std::popcount(bits[i]);
  if (in % 8 != 0 && (bits[bytes - 1] >> (in % 8)) != 0) {
    malformed("row {}: bits past the last column, {}", row, in - 1);
  }
  if (kept != expected) {
    malformed("row {}: {} bits in the bitmask, row_offsets say {}", row, kept, expected);
  }
}

void validate_bitmask(const PackedView& p) {
  const auto* offsets = p.array<std::int64_t>(BitmaskArrays::kRowOffsets);
  const auto* bits = p.array<std::uint8_t>(BitmaskArrays::kBitmask);
  std::int64_t reached = 0;
  for (std::int64_t b = 0; b < p.batch(); ++b, offsets += p.out() + 1) {
    check_offsets(offsets, p.out() + 1, reached, "row_offsets");
    reached = offsets[p.out()];
    if (reached > p.kept()) malformed("row_offsets: {} of {} values", reached, p.kept());
    for (std::int64_t r = 0; r < p.out(); ++r, bits += ceil_div(p.in(), 8)) {
      check_bitmask_row(bits, p.in(), r, offsets[r + 1] - offsets[r]);
    }
  }
  if (reached != p.kept()) malformed("row_offsets end at {} of {} values", reached, p.kept());
}

/// What a block that reaches over the edge holds there must be zero.
void check_bsr_edge(const PackedView& p, std::int64_t block, std::int64_t first_row,
                    std::int64_t first_col) {
  const std::int64_t rows = p.pattern().block_rows;
  const std::int64_t cols = p.pattern().block_cols;
  const std::int64_t width = std::min(cols, p.in() - first_col);
  const std::int64_t height = std::min(rows, p.out() - first_row);
  if (width == cols && height == rows) return;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t begin = (block * rows + r) * cols;
    check_zero_values(p, BsrArrays::kValues, begin + (r < height ? width : 0), begin + cols,
                      first_row + r);
  }
}

void validate_bsr(const PackedView& p) {
  const std::int64_t rows = p.pattern().block_rows;
  const std::int64_t cols = p.pattern().block_cols;
  const std::int64_t block_rows = ceil_div(p.out(), rows);
  const std::int64_t blocks = p.kept() / (rows * cols);
  const auto* offsets = p.array<std::int64_t>(BsrArrays::kBlockRowOffsets);
  const auto* block_cols = p.array<std::int32_t>(BsrArrays::kBlockCols);
  std::int64_t reached = 0;
  for (std::int64_t b = 0; b < p.batch(); ++b, offsets += block_rows + 1) {
    check_offsets(offsets, block_rows + 1, reached, "block_row_offsets");
    reached = offsets[block_rows];
    if (reached > blocks) malformed("block_row_offsets: {} of {} blocks", reached, blocks);
    for (std::int64_t r = 0; r < block_rows; ++r) {
      check_cols(block_cols + offsets[r], offsets[r + 1] - offsets[r], ceil_div(p.in(), cols),
                 r * rows);
      for (std::int64_t k = offsets[r]; k < offsets[r + 1]; ++k) {
        check_bsr_edge(p, k, r * rows, block_cols[k] * cols);
      }
    }
  }
  if (reached != blocks) malformed("block_row_offsets end at {} of {} blocks", reached, blocks);
}

void validate_fan_in(const PackedView& p) {
  if (p.kept() == 0) return;
  const std::int64_t count = fan_in_count(p.pattern(), p.in());
  for (std::int64_t row = 0; row < p.batch() * p.out(); ++row) {
    if (fan_in_col_dtype(p.in()) == DType::kUInt16) {
      check_cols(p.array<std::uint16_t>(FanInArrays::kCols) + row * count, count, p.in(), row);
    } else {
      check_cols(p.array<std::int32_t>(FanInArrays::kCols) + row * count, count, p.in(), row);
    }
  }
}

void check_segments(const std::uint32_t* segments, std::int64_t out, std::int64_t expected,
                    const std::uint8_t* cols, std::int64_t width) {
  if (segments[0] != 0) malformed("segment_offsets: a block begins at {}", segments[0]);
  if (segments[out] != expected) {
    malformed("segment_offsets: a block ends at {}, block_offsets say {}", segments[out], expected);
  }
  for (std::int64_t r = 0; r < out; ++r) {
    if (segments[r + 1] < segments[r] || segments[r + 1] > expected) {
      malformed("segment_offsets: {} follows {} in a block of {}", segments[r + 1], segments[r],
                expected);
    }
    check_cols(cols + segments[r], std::int64_t{segments[r + 1]} - std::int64_t{segments[r]}, width,
               r);
  }
}

void validate_kcsr(const PackedView& p) {
  const std::int64_t block = kcsr_block(p.layout());
  const std::int64_t blocks = ceil_div(p.in(), block);
  const auto* offsets = p.array<std::int64_t>(KcsrArrays::kBlockOffsets);
  const auto* segments = p.array<std::uint32_t>(KcsrArrays::kSegmentOffsets);
  const auto* cols = p.array<std::uint8_t>(KcsrArrays::kCols);
  std::int64_t reached = 0;
  for (std::int64_t b = 0; b < p.batch(); ++b, offsets += blocks + 1) {
    check_offsets(offsets, blocks + 1, reached, "block_offsets");
    reached = offsets[blocks];
    if (reached > p.kept()) malformed("block_offsets: {} of {} values", reached, p.kept());
    for (std::int64_t k = 0; k < blocks; ++k, segments += p.out() + 1) {
      check_segments(segments, p.out(), offsets[k + 1] - offsets[k], cols + offsets[k],
                     std::min(block, p.in() - k * block));
    }
  }
  if (reached != p.kept()) malformed("block_offsets end at {} of {} values", reached, p.kept());
}

/// Groups past the last column and the missing row of an odd number must be empty ones.
void check_nm24_line(const PackedView& p, std::int64_t line, std::int64_t rows) {
  const std::int64_t groups = nm24_groups(p.in());
  const auto* meta = p.array<std::uint8_t>(Nm24Arrays::kMeta) + line * groups;
  for (std::int64_t g = 0; g < groups; ++g) {
    for (int half = 0; half < 2; ++half) {
      const int first = (meta[g] >> (4 * half)) & 3;
      const int second = (meta[g] >> (4 * half + 2)) & 3;
      const std::int64_t left = half < rows ? p.in() - g * 4 : 0;  // columns inside the matrix
      if (first >= second || (left <= 0 && (first != 0 || second != 1))) {
        malformed("row pair {}, group {}: positions {} and {} are not two ascending ones", line, g,
                  first, second);
      }
      const std::int64_t inside = (first < left ? 1 : 0) + (second < left ? 1 : 0);
      const std::int64_t at = (line * groups + g) * 4 + 2 * std::int64_t{half};
      check_zero_values(p, Nm24Arrays::kValues, at + inside, at + 2, line * 2 + half);
    }
  }
}

void validate_nm24(const PackedView& p) {
  if (p.kept() == 0) return;
  const std::int64_t pairs = ceil_div(p.out(), 2);
  for (std::int64_t line = 0; line < p.batch() * pairs; ++line) {
    check_nm24_line(p, line, std::min<std::int64_t>(2, p.out() - line % pairs * 2));
  }
}

/// One row of tiles. Rows below the matrix and groups past the last column must be empty ones.
template <int kElementBytes>
void check_nm24_tiles(const PackedView& p, const std::byte* tile, std::int64_t first_row) {
  using Tile = Nm24Tile<kElementBytes>;
  const std::int64_t tiles = nm24_input_tiles(p.in(), kElementBytes);
  for (std::int64_t t = 0; t < tiles; ++t, tile += Tile::kBytes) {
    for (int row = 0; row < Tile::kRows; ++row) {
      for (int g = 0; g < Tile::kGroups; ++g) {
        const int nibble = Tile::meta_nibble(row, g);
        const int both = std::to_integer<int>(tile[Tile::kValueBytes + nibble / 2]);
        const int positions[2] = {(both >> (nibble % 2 * 4)) & 3,
                                  (both >> (nibble % 2 * 4 + 2)) & 3};
        const std::int64_t first = t * Tile::kInputs + g * 4;
        const std::int64_t left = first_row + row < p.out() ? p.in() - first : 0;
        if (positions[0] >= positions[1] ||
            (left <= 0 && (positions[0] != 0 || positions[1] != 1))) {
          malformed("row {}, columns from {}: positions {} and {} are not two ascending ones",
                    first_row + row, first, positions[0], positions[1]);
        }
        for (int slot = 0; slot < 2; ++slot) {
          const std::byte* value = tile + Tile::value_byte(row, 2 * g + slot);
          if (positions[slot] >= left && !all_zero(value, value + kElementBytes)) {
            malformed("row {}, columns from {}: a value past the matrix is not zero",
                      first_row + row, first);
          }
        }
      }
    }
  }
}

template <int kElementBytes>
void validate_nm24_tiles(const PackedView& p) {
  using Tile = Nm24Tile<kElementBytes>;
  const std::int64_t row_tiles = nm24_row_tiles(p.out());
  const std::int64_t row_bytes = nm24_input_tiles(p.in(), kElementBytes) * Tile::kBytes;
  const std::byte* tiles = p.array(Nm24TilesArrays::kTiles);
  for (std::int64_t i = 0; i < p.batch() * row_tiles; ++i) {
    check_nm24_tiles<kElementBytes>(p, tiles + i * row_bytes, i % row_tiles * Tile::kRows);
  }
}

/// Reserved fields and the bytes between arrays are zero, so that equal weights are equal bytes.
void check_padding(const PackedView& p) {
  const PackedHeader& h = p.header();
  if (std::any_of(h.reserved2.begin(), h.reserved2.end(), [](std::uint8_t b) { return b != 0; })) {
    malformed("a reserved field of the header is not zero");
  }
  for (int i = 0; i < h.array_count; ++i) {
    const auto& array = h.arrays[static_cast<std::size_t>(i)];
    const std::int64_t next =
        i + 1 < h.array_count ? h.arrays[static_cast<std::size_t>(i) + 1].offset : p.layout_bytes();
    if (!all_zero(p.data() + array.offset + array.bytes, p.data() + next)) {
      malformed("the padding after array {} is not zero", i);
    }
  }
}

}  // namespace

void detail::validate_layout(const PackedView& p) {
  check_padding(p);
  switch (p.layout()) {
    case Layout::kNm:
      return validate_nm(p);
    case Layout::kBitmask:
      return validate_bitmask(p);
    case Layout::kBsr:
      return validate_bsr(p);
    case Layout::kFanIn:
      return validate_fan_in(p);
    case Layout::kKcsr64:
    case Layout::kKcsr128:
    case Layout::kKcsr256:
      return validate_kcsr(p);
    case Layout::kRowPairs64:
    case Layout::kRowPairs128:
    case Layout::kRowQuads512:
      return validate_row_pairs(p);
    case Layout::kNm24Pairs:
      return validate_nm24(p);
    case Layout::kNm24Tiles:
      return dtype_bytes(p.dtype()) == 2 ? validate_nm24_tiles<2>(p) : validate_nm24_tiles<1>(p);
  }
}

}  // namespace gossamer
