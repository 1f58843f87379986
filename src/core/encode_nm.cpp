// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "core/encode.h"
#include "core/half.h"
#include "core/nm_group.h"

namespace gossamer::detail {
namespace {

template <typename Raw>
void fill_row(const NmShape& shape, std::int64_t in, const std::byte* values,
              const std::uint8_t* mask, Raw* stored, std::uint8_t* indices, std::int64_t row) {
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    const std::int64_t first = g * shape.m;
    const std::int64_t width = std::min(shape.m, in - first);
    std::uint64_t bits = nm_filled_group(shape, in, mask, g, row);
    write_bits(indices, g * shape.group_bits, shape.group_bits, nm_group_code(shape, bits));
    for (; bits != 0; bits &= bits - 1) {
      const int position = std::countr_zero(bits);
      *stored++ = position < width
                      ? load_raw<Raw>(values + (first + position) * std::int64_t{sizeof(Raw)})
                      : Raw{0};
    }
  }
}

}  // namespace

PackedWeight encode_nm(const RowSource& source, const FormatInfo& info,
                       const PackedAllocator& allocator) {
  const PackedBuffer buffer(info, 0, allocator);
  const NmShape shape = nm_shape(info.pattern, info.in);
  std::vector<std::byte> values(static_cast<std::size_t>(info.in * dtype_bytes(info.dtype)));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  auto* indices = buffer.array<std::uint8_t>(NmArrays::kIndices);
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    auto* stored = buffer.array<Raw>(NmArrays::kValues);
    for (std::int64_t row = 0; row < info.batch * info.out; ++row) {
      source.read(row / info.out, row % info.out, values.data(), mask.data());
      std::memset(indices, 0, static_cast<std::size_t>(shape.index_bytes));
      fill_row(shape, info.in, values.data(), mask.data(), stored, indices, row % info.out);
      stored += shape.groups * shape.n;
      indices += shape.index_bytes;
    }
  });
  return buffer.finish();
}

}  // namespace gossamer::detail
