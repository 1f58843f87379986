// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/compress.h"
#include "core/encode.h"

namespace gossamer::detail {
namespace {

std::vector<std::int64_t> row_offsets(const RowSource& source, const FormatInfo& info) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  std::vector<std::int64_t> offsets;
  offsets.reserve(static_cast<std::size_t>(info.batch * (info.out + 1)));
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < info.batch; ++b) {
    offsets.push_back(total);
    for (std::int64_t r = 0; r < info.out; ++r) {
      source.read_mask(b, r, mask.data());
      total = std::accumulate(mask.begin(), mask.end(), total);
      offsets.push_back(total);
    }
  }
  return offsets;
}

void write_row_bits(const std::vector<std::uint8_t>& mask, std::uint8_t* bits) {
  const std::size_t whole = mask.size() / 8 * 8;
  for (std::size_t i = 0; i < whole; i += 8) {
    // Eight bytes that are 0 or 1: the product gathers them into the top byte, first byte lowest.
    std::uint64_t eight = 0;
    std::memcpy(&eight, mask.data() + i, 8);
    *bits++ = static_cast<std::uint8_t>((eight * 0x0102040810204080ull) >> 56);
  }
  if (whole == mask.size()) return;
  std::uint8_t last = 0;
  for (std::size_t i = whole; i < mask.size(); ++i) {
    last = static_cast<std::uint8_t>(last | (mask[i] << (i - whole)));
  }
  *bits = last;
}

}  // namespace

PackedWeight encode_bitmask(const RowSource& source, const FormatInfo& info,
                            const PackedAllocator& allocator) {
  const std::vector<std::int64_t> offsets = row_offsets(source, info);
  const PackedBuffer buffer(info, offsets.back(), allocator);
  std::copy(offsets.begin(), offsets.end(), buffer.array<std::int64_t>(BitmaskArrays::kRowOffsets));
  std::vector<std::byte> values(static_cast<std::size_t>(info.in * dtype_bytes(info.dtype)));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  auto* bits = buffer.array<std::uint8_t>(BitmaskArrays::kBitmask);
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    auto* stored = buffer.array<Raw>(BitmaskArrays::kValues);
    for (std::int64_t row = 0; row < info.batch * info.out; ++row) {
      source.read(row / info.out, row % info.out, values.data(), mask.data());
      write_row_bits(mask, bits);
      bits += ceil_div(info.in, 8);
      stored += compress(values.data(), mask.data(), info.in, stored);
    }
  });
  return buffer.finish();
}

}  // namespace gossamer::detail
