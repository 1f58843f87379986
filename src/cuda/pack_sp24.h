// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>

#include "gossamer/packed_weight.h"

// From dense to 2:4 tiles and back, on the GPU; every pointer is device memory, every call only
// enqueues. Element size decides, not the dtype: values are moved, never computed with, but for the
// comparison of magnitudes.
namespace gossamer::cuda {

/// A dense weight [out, in] and what is kept of it.
struct DenseWeight {
  void* values = nullptr;
  std::int64_t row_stride = 0;  ///< elements; columns are contiguous
  const bool* mask = nullptr;   ///< same shape, or null: the non-zeros are kept
  std::int64_t mask_stride = 0;
  DType dtype = DType::kBFloat16;  ///< float16 or bfloat16
  std::int64_t out = 0;
  std::int64_t in = 0;
};

/// Where a weight breaks 2:4: row · in + first column of the group, kNoViolation where nowhere.
inline constexpr std::uint64_t kNoViolation = ~std::uint64_t{0};

enum class Selection {
  kVerify,     ///< what is kept must be 2:4 already
  kMagnitude,  ///< the two largest of each group, ties to the lower column
};

/// Writes a whole packed weight: header and tiles. With kVerify `violation` (device, set to
/// kNoViolation by this call) takes the first offending group; what is written then is of no use.
/// The tiles go to `offset` bytes after the start of `packed`.
void pack_sp24(const DenseWeight& weight, const PackedHeader& header, std::int64_t offset,
               std::byte* packed, Selection selection, std::uint64_t* violation, void* stream);

/// The dense values again (weight.values is written) and, unless null, the mask of kept positions.
void unpack_sp24(const std::byte* tiles, const DenseWeight& weight, bool* kept, void* stream);

/// The arrays of the format `nm` of a 2:4 weight: values [out, 2·ceil(in/4)] and a nibble for each
/// group, rows beginning at a byte.
struct Nm24Format {
  void* values = nullptr;
  std::uint8_t* indices = nullptr;
  DType dtype = DType::kBFloat16;
  std::int64_t out = 0;
  std::int64_t in = 0;
};

/// Both write `header` and one matrix of a stack; tiles go to `offset` bytes after the start.
void tiles_from_nm24(const Nm24Format& format, const PackedHeader& header, std::int64_t offset,
                     std::byte* packed, void* stream);
void nm24_from_tiles(const std::byte* tiles, const PackedHeader& header, const Nm24Format& format,
                     std::byte* packed, void* stream);

}  // namespace gossamer::cuda
