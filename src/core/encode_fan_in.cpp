// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <vector>

#include "core/compress.h"
#include "core/encode.h"
#include "core/fail.h"

namespace gossamer::detail {
namespace {

/// Marks the lowest free positions until `count` are kept.
void fill_mask(std::vector<std::uint8_t>& mask, std::int64_t count, std::int64_t row) {
  std::int64_t kept = std::count(mask.begin(), mask.end(), std::uint8_t{1});
  if (kept > count) {
    fail(ErrorCode::kPatternViolation, "row {}: {} inputs kept, the fan-in is {}", row, kept,
         count);
  }
  for (std::size_t i = 0; kept < count; ++i) {
    kept += mask[i] == 0 ? 1 : 0;
    mask[i] = 1;
  }
}

template <typename Raw, typename Col>
void fill(const RowSource& source, const FormatInfo& info, Raw* stored, Col* cols) {
  const std::int64_t count = fan_in_count(info.pattern, info.in);
  std::vector<std::byte> values(static_cast<std::size_t>(info.in) * sizeof(Raw));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  for (std::int64_t row = 0; row < info.batch * info.out; ++row) {
    source.read(row / info.out, row % info.out, values.data(), mask.data());
    fill_mask(mask, count, row % info.out);
    for_each_kept(mask.data(), info.in, [&](std::int64_t i) { *cols++ = static_cast<Col>(i); });
    stored += compress(values.data(), mask.data(), info.in, stored);
  }
}

}  // namespace

PackedWeight encode_fan_in(const RowSource& source, const FormatInfo& info,
                           const PackedAllocator& allocator) {
  const PackedBuffer buffer(info, 0, allocator);
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    auto* stored = buffer.array<Raw>(FanInArrays::kValues);
    if (fan_in_col_dtype(info.in) == DType::kUInt16) {
      fill(source, info, stored, buffer.array<std::uint16_t>(FanInArrays::kCols));
    } else {
      fill(source, info, stored, buffer.array<std::int32_t>(FanInArrays::kCols));
    }
  });
  return buffer.finish();
}

}  // namespace gossamer::detail
