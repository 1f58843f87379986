// SPDX-License-Identifier: BSD-3-Clause
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "convert/nibbles.h"
#include "convert/rows.h"
#include "core/encode.h"
#include "core/mask_verify.h"
#include "core/row_source.h"

namespace gossamer::detail {
namespace {

/// A weight whose rows are read where they lie.
struct DenseRows {
  ConstMatrixView values;
  const ConstMatrixView* mask;
  std::int64_t bytes;
  std::uint64_t magnitude;

  std::int64_t rows() const { return values.batch * values.rows; }
  static const std::byte* row_of(const ConstMatrixView& view, std::int64_t row,
                                 std::int64_t bytes) {
    const std::int64_t at = row / view.rows * view.batch_stride + row % view.rows * view.row_stride;
    return view.data + at * bytes;
  }
  const std::byte* value_row(std::int64_t row) const { return row_of(values, row, bytes); }
  std::int64_t mark(const cpu::RowCodec& codec, std::int64_t row, std::uint64_t* bits) const {
    const auto* const marks =
        mask == nullptr ? nullptr : reinterpret_cast<const std::uint8_t*>(row_of(*mask, row, 1));
    return codec.mark(marks, value_row(row), magnitude, values.cols, bits);
  }
};

std::uint64_t magnitude_of(DType dtype) {
  return dtype_bytes(dtype) == 2 ? magnitude_bits<std::uint16_t>(dtype)
                                 : magnitude_bits<std::uint32_t>(dtype);
}

/// What every row keeps; read once, so that nothing is written before the pattern is known to hold.
struct Marks {
  std::int64_t words = 0;  // of a row
  std::unique_ptr<std::uint64_t[]> bits;
  std::vector<std::int64_t> counts;

  std::uint64_t* row(std::int64_t index) const { return bits.get() + index * words; }
};

Marks mark_rows(const DenseRows& dense, const cpu::RowCodec& codec, const ParallelFor& parallel) {
  Marks marks;
  marks.words = row_words(dense.values.cols);
  const std::int64_t rows = dense.rows();
  marks.bits.reset(new std::uint64_t[static_cast<std::size_t>(rows * marks.words)]);
  marks.counts.resize(static_cast<std::size_t>(rows));
  parallel_for(parallel, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      marks.counts[static_cast<std::size_t>(r)] = dense.mark(codec, r, marks.row(r));
    }
  });
  return marks;
}

std::optional<PackedWeight> pack_bitmask(const DenseRows& dense, const cpu::RowCodec& codec,
                                         const FormatInfo& info, const PackOptions& options) {
  const Marks marks = mark_rows(dense, codec, options.parallel);
  std::vector<std::int64_t> ends(marks.counts.size());
  std::partial_sum(marks.counts.begin(), marks.counts.end(), ends.begin());
  const std::int64_t rows = dense.rows();
  const std::int64_t total = ends.back();
  if (total > most_kept(info.pattern, rows, info.in)) return std::nullopt;
  const PackedBuffer buffer(info, total, options.allocator);
  auto* const offsets = buffer.array<std::int64_t>(BitmaskArrays::kRowOffsets);
  auto* const packed_bits = buffer.array<std::byte>(BitmaskArrays::kBitmask);
  auto* const stored = buffer.array<std::byte>(BitmaskArrays::kValues);
  const std::int64_t row_bytes = ceil_div(info.in, 8);
  parallel_for(options.parallel, rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t count = marks.counts[static_cast<std::size_t>(r)];
      const std::int64_t last = ends[static_cast<std::size_t>(r)];
      if (r % info.out == 0) offsets[r + r / info.out] = last - count;
      offsets[r + r / info.out + 1] = last;
      const std::uint64_t* const own = marks.row(r);
      std::memcpy(packed_bits + r * row_bytes, own, static_cast<std::size_t>(row_bytes));
      codec.compress(dense.value_row(r), dense.magnitude, own, own, info.in,
                     stored + (last - count) * dense.bytes, count);
    }
  });
  return buffer.finish();
}

/// The bytes of a row's bits that hold its groups of four, two a byte.
std::int64_t nibble_bytes(std::int64_t in) { return ceil_div(ceil_div(in, 4), 2); }

bool fits_nibbles(const std::uint64_t* kept, std::int64_t in) {
  const auto* const from = reinterpret_cast<const std::uint8_t*>(kept);
  bool fits = true;
  for (std::int64_t i = 0; i < nibble_bytes(in); ++i) fits &= kNibbleTables.stored[from[i]] != 0;
  return fits;
}

/// Stored bytes and filled bits of a row.
void fill_nibbles(const std::uint64_t* kept, std::int64_t in, std::uint8_t* indices,
                  std::uint64_t* filled) {
  const auto* const from = reinterpret_cast<const std::uint8_t*>(kept);
  auto* const to = reinterpret_cast<std::uint8_t*>(filled);
  const std::int64_t bytes = nibble_bytes(in);
  for (std::int64_t i = 0; i < bytes; ++i) {
    indices[i] = kNibbleTables.stored[from[i]];
    to[i] = kNibbleTables.filled[from[i]];
  }
  if (ceil_div(in, 4) % 2 == 0) return;
  indices[bytes - 1] &= 0x0f;  // The last byte has one group.
  to[bytes - 1] &= 0x0f;
}

std::optional<PackedWeight> pack_nibbles(const DenseRows& dense, const cpu::RowCodec& codec,
                                         const FormatInfo& info, const PackOptions& options) {
  const Marks marks = mark_rows(dense, codec, options.parallel);
  std::atomic<bool> fits{true};
  parallel_for(options.parallel, dense.rows(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      if (!fits_nibbles(marks.row(r), info.in)) fits = false;
    }
  });
  if (!fits) return std::nullopt;
  const PackedBuffer buffer(info, 0, options.allocator);
  const std::int64_t slots = ceil_div(info.in, 4) * 2;
  auto* const indices = buffer.array<std::uint8_t>(NmArrays::kIndices);
  auto* const stored = buffer.array<std::byte>(NmArrays::kValues);
  parallel_for(options.parallel, dense.rows(), [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint64_t> filled(static_cast<std::size_t>(marks.words));
    for (std::int64_t r = begin; r < end; ++r) {
      fill_nibbles(marks.row(r), info.in, indices + r * nibble_bytes(info.in), filled.data());
      codec.compress(dense.value_row(r), dense.magnitude, marks.row(r), filled.data(), info.in,
                     stored + r * slots * dense.bytes, slots);
    }
  });
  return buffer.finish();
}

}  // namespace

std::optional<PackedWeight> pack_rows(const ConstMatrixView& values, const ConstMatrixView* mask,
                                      const FormatInfo& info, const PackOptions& options) {
  const auto format = row_format(info.format, info.pattern, info.dtype);
  const bool side_by_side = values.col_stride == 1 && (mask == nullptr || mask->col_stride == 1);
  if (!format || !side_by_side || info.in == 0 || info.out == 0) return std::nullopt;
  // Only these patterns are counted here; others are verified by the core.
  const bool counted =
      *format == RowFormat::kNibbles || info.pattern.kind == Pattern::Kind::kUnstructured;
  if (!counted) return std::nullopt;
  const std::int64_t bytes = dtype_bytes(info.dtype);
  const DenseRows dense{values, mask, bytes, magnitude_of(info.dtype)};
  const cpu::RowCodec codec = cpu::row_codec(bytes);
  return *format == RowFormat::kNibbles ? pack_nibbles(dense, codec, info, options)
                                        : pack_bitmask(dense, codec, info, options);
}

}  // namespace gossamer::detail
