// SPDX-License-Identifier: BSD-3-Clause
#include "core/encode.h"

#include <cstring>
#include <new>

#include "core/fail.h"

namespace gossamer::detail {
namespace {

constexpr std::align_val_t kAlignment{static_cast<std::size_t>(kArrayAlignment)};

}  // namespace

std::shared_ptr<std::byte> allocate_packed(std::int64_t bytes, const PackedAllocator& allocator) {
  if (!allocator) {
    auto* data =
        static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), kAlignment));
    return {data, [](std::byte* p) { ::operator delete(p, kAlignment); }};
  }
  std::shared_ptr<std::byte> data = allocator(bytes);
  if (data == nullptr || reinterpret_cast<std::uintptr_t>(data.get()) % kArrayAlignment != 0) {
    fail(ErrorCode::kInvalidArgument,
         "the allocator returned {} for {} bytes; memory aligned to {} bytes is expected",
         data == nullptr ? "nothing" : "unaligned memory", bytes, kArrayAlignment);
  }
  return data;
}

PackedBuffer::PackedBuffer(const FormatInfo& info, std::int64_t kept,
                           const PackedAllocator& allocator, const PairSizes& sizes)
    : spec_(layout_spec(info, kept, sizes)), data_(allocate_packed(spec_.total_bytes, allocator)) {
  const PackedHeader header = make_header(info, spec_);
  std::memcpy(data_.get(), &header, sizeof(header));
  for (int i = 0; i < spec_.count; ++i) {
    const ArraySpec& array = spec_.arrays[static_cast<std::size_t>(i)];
    const std::int64_t end = array.offset + array.bytes;
    const std::int64_t next = i + 1 < spec_.count
                                  ? spec_.arrays[static_cast<std::size_t>(i) + 1].offset
                                  : spec_.total_bytes;
    std::memset(data_.get() + end, 0, static_cast<std::size_t>(next - end));
  }
}

PackedWeight encode(const RowSource& source, const FormatInfo& info,
                    const PackedAllocator& allocator) {
  layout_spec(info, 0);  // refuses what cannot be before a row is read
  switch (info.format) {
    case Layout::kNm:
      return encode_nm(source, info, allocator);
    case Layout::kBitmask:
      return encode_bitmask(source, info, allocator);
    case Layout::kBsr:
      return encode_bsr(source, info, allocator);
    case Layout::kFanIn:
      return encode_fan_in(source, info, allocator);
    case Layout::kKcsr64:
    case Layout::kKcsr128:
    case Layout::kKcsr256:
      return encode_kcsr(source, info, allocator);
    case Layout::kRowPairs64:
    case Layout::kRowPairs128:
    case Layout::kRowQuads512:
      return encode_row_pairs(source, info, allocator);
    case Layout::kNm24Pairs:
      return encode_nm24(source, info, allocator);
    case Layout::kNm24Tiles:
      break;
  }
  return encode_nm24_tiles(source, info, allocator);
}

std::int64_t encoded_bytes(const RowSource& source, const FormatInfo& info) {
  // Every encoder counts, asks for memory and fills it: the size is what it asks for.
  struct Asked {
    std::int64_t bytes;
  };
  try {
    encode(source, info,
           [](std::int64_t bytes) -> std::shared_ptr<std::byte> { throw Asked{bytes}; });
  } catch (const Asked& asked) {
    return asked.bytes;
  }
  fail(ErrorCode::kUnsupported, "the encoder of layout {} asked for no memory",
       layout_name(info.format));
}

}  // namespace gossamer::detail
