// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "core/compress.h"
#include "core/encode.h"
#include "core/fail.h"

namespace gossamer::detail {
namespace {

/// The two offset arrays, in their order.
struct KcsrIndex {
  std::vector<std::uint32_t> segments;
  std::vector<std::int64_t> blocks;
  std::int64_t kept = 0;
};

/// Writes how many each row keeps in each block of KC inputs at [block, row + 1].
void count_batch(const RowSource& source, const FormatInfo& info, std::int64_t batch,
                 std::uint32_t* counts) {
  const std::int64_t block = kcsr_block(info.format);
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  for (std::int64_t r = 0; r < info.out; ++r) {
    source.read_mask(batch, r, mask.data());
    for (std::int64_t k = 0; k * block < info.in; ++k) {
      const auto begin = mask.begin() + k * block;
      const auto end = mask.begin() + std::min((k + 1) * block, info.in);
      counts[k * (info.out + 1) + r + 1] = std::accumulate(begin, end, std::uint32_t{0});
    }
  }
}

KcsrIndex index_of(const RowSource& source, const FormatInfo& info) {
  const std::int64_t blocks = ceil_div(info.in, kcsr_block(info.format));
  KcsrIndex index;
  index.segments.assign(static_cast<std::size_t>(info.batch * blocks * (info.out + 1)), 0);
  index.blocks.reserve(static_cast<std::size_t>(info.batch * (blocks + 1)));
  std::uint32_t* segment = index.segments.data();
  for (std::int64_t b = 0; b < info.batch; ++b) {
    count_batch(source, info, b, segment);
    index.blocks.push_back(index.kept);
    for (std::int64_t k = 0; k < blocks; ++k, segment += info.out + 1) {
      std::int64_t sum = 0;
      for (std::int64_t r = 1; r <= info.out; ++r) {
        sum += segment[r];
        segment[r] = static_cast<std::uint32_t>(sum);
      }
      if (sum > std::numeric_limits<std::uint32_t>::max()) {
        fail(ErrorCode::kUnsupported,
             "layout {}: {} values in one block of inputs, 32-bit offsets reach 4294967295; use "
             "layout bitmask",
             layout_name(info.format), sum);
      }
      index.kept += sum;
      index.blocks.push_back(index.kept);
    }
  }
  return index;
}

template <typename Raw>
void fill(const RowSource& source, const FormatInfo& info, const KcsrIndex& index, Raw* stored,
          std::uint8_t* cols) {
  const std::int64_t block = kcsr_block(info.format);
  const std::int64_t blocks = ceil_div(info.in, block);
  std::vector<std::byte> values(static_cast<std::size_t>(info.in) * sizeof(Raw));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  for (std::int64_t row = 0; row < info.batch * info.out; ++row) {
    const std::int64_t b = row / info.out;
    const std::int64_t r = row % info.out;
    source.read(b, r, values.data(), mask.data());
    for (std::int64_t k = 0; k < blocks; ++k) {
      const std::int64_t at =
          index.blocks[static_cast<std::size_t>(b * (blocks + 1) + k)] +
          index.segments[static_cast<std::size_t>((b * blocks + k) * (info.out + 1) + r)];
      const std::int64_t width = std::min(block, info.in - k * block);
      const std::uint8_t* kept = mask.data() + k * block;
      std::uint8_t* col = cols + at;
      for_each_kept(kept, width, [&](std::int64_t i) { *col++ = static_cast<std::uint8_t>(i); });
      compress(values.data() + k * block * std::int64_t{sizeof(Raw)}, kept, width, stored + at);
    }
  }
}

/// A convolution's rows with their inputs channel by channel.
class ChannelMajorSource final : public RowSource {
 public:
  ChannelMajorSource(const RowSource& by_tap, std::int64_t taps)
      : RowSource(by_tap.dtype(), by_tap.batch(), by_tap.out(), by_tap.in()),
        by_tap_(by_tap),
        order_{taps, by_tap.in() / taps},
        mask_(static_cast<std::size_t>(in())),
        values_(static_cast<std::size_t>(in() * dtype_bytes(dtype()))) {}

  void read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const override {
    by_tap_.read_mask(batch, row, mask_.data());
    reorder(mask_.data(), mask);
  }

  void read(std::int64_t batch, std::int64_t row, std::byte* values,
            std::uint8_t* mask) const override {
    by_tap_.read(batch, row, values_.data(), mask_.data());
    reorder(mask_.data(), mask);
    with_raw_type(dtype_bytes(dtype()), [&]<typename Raw>(Raw) {
      reorder(reinterpret_cast<const Raw*>(values_.data()), reinterpret_cast<Raw*>(values));
    });
  }

 private:
  template <typename T>
  void reorder(const T* from, T* to) const {
    for (std::int64_t i = 0; i < in(); ++i) to[order_.to(i)] = from[i];
  }

  const RowSource& by_tap_;
  ChannelMajor order_;
  mutable std::vector<std::uint8_t> mask_;
  mutable std::vector<std::byte> values_;
};

PackedWeight encode_ordered(const RowSource& source, const FormatInfo& info,
                            const PackedAllocator& allocator) {
  const KcsrIndex index = index_of(source, info);
  const PackedBuffer buffer(info, index.kept, allocator);
  std::copy(index.segments.begin(), index.segments.end(),
            buffer.array<std::uint32_t>(KcsrArrays::kSegmentOffsets));
  std::copy(index.blocks.begin(), index.blocks.end(),
            buffer.array<std::int64_t>(KcsrArrays::kBlockOffsets));
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    fill(source, info, index, buffer.array<Raw>(KcsrArrays::kValues),
         buffer.array<std::uint8_t>(KcsrArrays::kCols));
  });
  return buffer.finish();
}

}  // namespace

PackedWeight encode_kcsr(const RowSource& source, const FormatInfo& info,
                         const PackedAllocator& allocator) {
  const std::int64_t taps = info.kernel_h * info.kernel_w;
  if (taps <= 1) return encode_ordered(source, info, allocator);
  return encode_ordered(ChannelMajorSource(source, taps), info, allocator);
}

}  // namespace gossamer::detail
