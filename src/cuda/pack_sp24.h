// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>

#include "gossamer/packed_weight.h"

// From dense to packed 2:4 weights and back, on the GPU; every pointer is device memory, every call
// only enqueues. Values are moved, never computed with, but for the comparison of magnitudes and in
// quantize_pack_sp24.
namespace gossamer::cuda {

/// A dense weight [out, in] and what is kept of it.
struct DenseWeight {
  void* values = nullptr;
  std::int64_t row_stride = 0;  ///< elements; columns are contiguous
  const bool* mask = nullptr;   ///< same shape, or null: the non-zeros are kept
  std::int64_t mask_stride = 0;
  DType dtype = DType::kBFloat16;
  std::int64_t out = 0;
  std::int64_t in = 0;
};

/// One matrix of a packed weight: in tiles (core/nm24_tile.h), or in the format `nm`, values
/// [out, 2·ceil(in/4)] and a nibble for each group, rows beginning at a byte.
struct PackedMatrix {
  std::byte* tiles = nullptr;  ///< null: the format nm
  std::byte* values = nullptr;
  std::byte* indices = nullptr;
  DType dtype = DType::kBFloat16;  ///< float16, bfloat16, float8_e4m3fn or int8
  std::int64_t out = 0;
  std::int64_t in = 0;
};

/// What a kernel found wrong with a matrix: row · in + column of the first place, kNowhere where
/// there is none.
struct Verdict {
  std::uint64_t violation;   ///< the first column of a group that keeps more than two
  std::uint64_t not_finite;  ///< of a weight that was to be quantized: NaN or an infinity
};
inline constexpr std::uint64_t kNowhere = ~std::uint64_t{0};

enum class Selection {
  kVerify,     ///< what is kept must be 2:4 already
  kMagnitude,  ///< the two largest of each group, ties to the lower column
};

/// Writes `header` to `packed` and one matrix to `to`, in the dtype of the weight. `verdict`
/// (device, set anew by this call) says whether the weight is 2:4; where it is not, what is written
/// is of no use. −0.0 is zero. Without `packed` and arrays in `to` the weight is only verified.
void pack_sp24(const DenseWeight& weight, const PackedHeader& header, std::byte* packed,
               const PackedMatrix& to, Selection selection, Verdict* verdict, void* stream);

/// The same of a float32, float16 or bfloat16 weight that becomes int8 or float8_e4m3fn (to.dtype):
/// scale[r] = max |w[r]| / 127 (448) and q = w · (1 / scale) to nearest, ties to even; rows whose
/// scale has no reciprocal are zeros of scale 0. Magnitudes and non-zeros are those of the weight,
/// so that what rounds to zero stays kept. A row is read once where it has at most 8192 inputs.
/// `scale` is [out].
void quantize_pack_sp24(const DenseWeight& weight, const PackedHeader& header, std::byte* packed,
                        const PackedMatrix& to, Selection selection, float* scale, Verdict* verdict,
                        void* stream);

/// The dense values again (weight.values is written where it is not null) and, unless null, the
/// mask of kept positions, [out, in] with `kept_stride` a row.
void unpack_sp24(const PackedMatrix& from, const DenseWeight& weight, bool* kept,
                 std::int64_t kept_stride, void* stream);

/// From tiles to the format or back; writes `header` to `packed` too.
void convert_sp24(const PackedMatrix& from, const PackedHeader& header, std::byte* packed,
                  const PackedMatrix& to, void* stream);

}  // namespace gossamer::cuda
