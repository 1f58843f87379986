// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/layouts.h"
#include "core/row_source.h"
#include "gossamer/packed_weight.h"

// One encoder a layout. Each reads a source twice at most: once to count, once to fill. Equal
// weights give equal bytes.
namespace gossamer::detail {

/// Memory of a packed weight: the header is written and all padding is zero; the arrays are to be
/// filled.
class PackedBuffer {
 public:
  PackedBuffer(const FormatInfo& info, std::int64_t kept, const PackedAllocator& allocator,
               const PairSizes& sizes = {});

  const LayoutSpec& spec() const { return spec_; }
  template <typename T>
  T* array(int index) const {
    return reinterpret_cast<T*>(data_.get() + spec_.arrays[static_cast<std::size_t>(index)].offset);
  }
  PackedWeight finish() const { return {data_, spec_.total_bytes}; }

 private:
  LayoutSpec spec_;
  std::shared_ptr<std::byte> data_;
};

/// Memory for a packed weight, from the allocator or, where it is empty, from operator new. Throws
/// Error(kInvalidArgument) where it is not aligned.
std::shared_ptr<std::byte> allocate_packed(std::int64_t bytes, const PackedAllocator& allocator);

/// Bytes that `encode` will ask its allocator for.
std::int64_t encoded_bytes(const RowSource& source, const FormatInfo& info);

/// Packs what the source keeps in the layout `info.format`. Throws Error(kPatternViolation) where a
/// row keeps more than the layout can hold.
PackedWeight encode(const RowSource& source, const FormatInfo& info,
                    const PackedAllocator& allocator);

PackedWeight encode_nm(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_bitmask(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_bsr(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_fan_in(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_kcsr(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_row_pairs(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_nm24(const RowSource&, const FormatInfo&, const PackedAllocator&);
PackedWeight encode_nm24_tiles(const RowSource&, const FormatInfo&, const PackedAllocator&);

}  // namespace gossamer::detail
