// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>
#include <vector>

#include "core/encode.h"
#include "core/half.h"
#include "core/nm_group.h"

namespace gossamer::detail {
namespace {

/// What an empty row holds in a byte of metadata: positions 0 and 1, twice.
constexpr int kEmptyMeta = 0x44;

/// Writes one row of a pair: half 0 or 1 of every group.
template <typename Raw>
void fill_row(const NmShape& shape, std::int64_t in, const std::byte* values,
              const std::uint8_t* mask, std::int64_t row, Raw* stored, std::uint8_t* meta) {
  const int half = static_cast<int>(row % 2);
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    std::uint64_t bits = nm_filled_group(shape, in, mask, g, row);
    const auto code = static_cast<unsigned>(nm_group_code(shape, bits));
    const unsigned others = meta[g] & (0xf0u >> (4 * half));
    meta[g] = static_cast<std::uint8_t>(others | (code << (4 * half)));
    for (Raw* to = stored + g * 4 + 2 * half; bits != 0; bits &= bits - 1) {
      const std::int64_t col = g * 4 + std::countr_zero(bits);
      *to++ = col < in ? load_raw<Raw>(values + col * std::int64_t{sizeof(Raw)}) : Raw{0};
    }
  }
}

}  // namespace

PackedWeight encode_nm24(const RowSource& source, const FormatInfo& info,
                         const PackedAllocator& allocator) {
  const PackedBuffer buffer(info, 0, allocator);
  const NmShape shape = nm_shape(info.pattern, info.in);
  const std::int64_t groups = nm24_groups(info.in);
  const std::int64_t pairs = ceil_div(info.out, 2);
  std::vector<std::byte> values(static_cast<std::size_t>(info.in * dtype_bytes(info.dtype)));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  const auto size_of = [&](int array) {
    return static_cast<std::size_t>(buffer.spec().arrays[static_cast<std::size_t>(array)].bytes);
  };
  auto* meta = buffer.array<std::uint8_t>(Nm24Arrays::kMeta);
  std::memset(meta, kEmptyMeta, size_of(Nm24Arrays::kMeta));
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    auto* stored = buffer.array<Raw>(Nm24Arrays::kValues);
    std::memset(stored, 0, size_of(Nm24Arrays::kValues));
    for (std::int64_t b = 0; b < info.batch; ++b) {
      for (std::int64_t r = 0; r < info.out; ++r) {
        source.read(b, r, values.data(), mask.data());
        const std::int64_t line = (b * pairs + r / 2) * groups;
        fill_row(shape, info.in, values.data(), mask.data(), r, stored + line * 4, meta + line);
      }
    }
  });
  return buffer.finish();
}

}  // namespace gossamer::detail
