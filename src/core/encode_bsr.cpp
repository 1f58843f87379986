// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/compress.h"
#include "core/encode.h"

namespace gossamer::detail {
namespace {

/// Which blocks keep anything: two of the three arrays.
struct BlockIndex {
  std::vector<std::int64_t> row_offsets;
  std::vector<std::int32_t> cols;
};

BlockIndex find_blocks(const RowSource& source, const FormatInfo& info) {
  const std::int64_t block_rows = info.pattern.block_rows;
  const std::int64_t block_cols = info.pattern.block_cols;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  std::vector<std::uint8_t> any(static_cast<std::size_t>(ceil_div(info.in, block_cols)));
  BlockIndex index;
  for (std::int64_t b = 0; b < info.batch; ++b) {
    index.row_offsets.push_back(static_cast<std::int64_t>(index.cols.size()));
    for (std::int64_t first = 0; first < info.out; first += block_rows) {
      std::fill(any.begin(), any.end(), std::uint8_t{0});
      for (std::int64_t r = first; r < std::min(first + block_rows, info.out); ++r) {
        source.read_mask(b, r, mask.data());
        for_each_kept(mask.data(), info.in,
                      [&](std::int64_t i) { any[static_cast<std::size_t>(i / block_cols)] = 1; });
      }
      for_each_kept(any.data(), static_cast<std::int64_t>(any.size()),
                    [&](std::int64_t i) { index.cols.push_back(static_cast<std::int32_t>(i)); });
      index.row_offsets.push_back(static_cast<std::int64_t>(index.cols.size()));
    }
  }
  return index;
}

/// Copies one row of the matrix into the blocks [begin, end) that it crosses.
template <typename Raw>
void scatter_row(const FormatInfo& info, const BlockIndex& index, std::int64_t begin,
                 std::int64_t end, std::int64_t row, const std::byte* values, Raw* blocks) {
  const std::int64_t block_rows = info.pattern.block_rows;
  const std::int64_t block_cols = info.pattern.block_cols;
  for (std::int64_t block = begin; block < end; ++block) {
    const std::int64_t first = index.cols[static_cast<std::size_t>(block)] * block_cols;
    const std::int64_t width = std::min(block_cols, info.in - first);
    std::memcpy(blocks + (block * block_rows + row % block_rows) * block_cols,
                values + first * std::int64_t{sizeof(Raw)},
                static_cast<std::size_t>(width) * sizeof(Raw));
  }
}

}  // namespace

PackedWeight encode_bsr(const RowSource& source, const FormatInfo& info,
                        const PackedAllocator& allocator) {
  const BlockIndex index = find_blocks(source, info);
  const std::int64_t block_rows = info.pattern.block_rows;
  const auto blocks = static_cast<std::int64_t>(index.cols.size());
  const PackedBuffer buffer(info, blocks * block_rows * info.pattern.block_cols, allocator);
  std::copy(index.row_offsets.begin(), index.row_offsets.end(),
            buffer.array<std::int64_t>(BsrArrays::kBlockRowOffsets));
  std::copy(index.cols.begin(), index.cols.end(),
            buffer.array<std::int32_t>(BsrArrays::kBlockCols));
  // Blocks that reach over the edge are zero there.
  std::memset(buffer.array<std::byte>(BsrArrays::kValues), 0,
              static_cast<std::size_t>(buffer.spec().arrays[BsrArrays::kValues].bytes));
  std::vector<std::byte> values(static_cast<std::size_t>(info.in * dtype_bytes(info.dtype)));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  const std::int64_t offsets_per_batch = ceil_div(info.out, block_rows) + 1;
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    auto* stored = buffer.array<Raw>(BsrArrays::kValues);
    for (std::int64_t row = 0; row < info.batch * info.out; ++row) {
      const std::int64_t b = row / info.out;
      const std::int64_t r = row % info.out;
      const auto offset = static_cast<std::size_t>(b * offsets_per_batch + r / block_rows);
      const std::int64_t begin = index.row_offsets[offset];
      const std::int64_t end = index.row_offsets[offset + 1];
      if (begin == end) continue;
      source.read(b, r, values.data(), mask.data());
      scatter_row(info, index, begin, end, r, values.data(), stored);
    }
  });
  return buffer.finish();
}

}  // namespace gossamer::detail
