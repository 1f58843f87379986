// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/dtype.h"
#include "gossamer/parallel.h"
#include "gossamer/pattern.h"
#include "gossamer/tensor_view.h"

namespace gossamer {

/// How a packed weight lies in memory. The first four are the *formats*: canonical, saved to files,
/// described bit by bit in docs/formats.md. The others are execution *layouts*: made from a format
/// when a plan is chosen, turned back into it to be saved. Numbers are stored and never change.
enum class Layout : std::int32_t {
  kNm = 1,       ///< values [out, G·N], indices: bit stream per row
  kBitmask = 2,  ///< bitmask [out, ceil(in/8)], values [nnz], row_offsets [out+1]
  kBsr = 3,      ///< block_row_offsets, block_cols, values [blocks, R, C]
  kFanIn = 4,    ///< values [out, F], cols [out, F]

  kKcsr64 = 16,   ///< K-blocked CSR, blocks of 64 inputs: 8-bit columns inside the block. A
                  ///< convolution's inputs are taken channel by channel, so that a block sees few
  kKcsr128 = 17,  ///< the same, blocks of 128
  kKcsr256 = 18,  ///< the same, blocks of 256

  kRowPairs64 = 24,   ///< K-blocked, rows in pairs that share columns, blocks of 64 inputs
  kRowPairs128 = 25,  ///< the same, blocks of 128
  kRowQuads512 = 26,  ///< rows in pairs that share groups of four inputs, blocks of 512 inputs

  kNm24Pairs = 32,  ///< 2:4 in row pairs: the kept values of two rows interleaved, a byte a group
  kNm24Tiles = 33,  ///< 2:4 in tiles of 64 rows, as the tensor cores of sm_90 read them
};

/// "nm", "bitmask", "bsr", "fanin", "kcsr64", …
std::string_view layout_name(Layout layout);
std::optional<Layout> parse_layout(std::string_view name);
bool is_format(Layout layout);

/// The format that a pattern is saved in: N:M → nm, block → bsr, fan-in → fanin, the rest →
/// bitmask.
Layout format_for(const Pattern& pattern);

/// The first bytes of every packed weight, little-endian, so that one byte tensor is enough to run,
/// save, shard or convert it. Offsets count bytes from the start of the header; arrays start at
/// multiples of 64.
struct PackedHeader {
  static constexpr std::uint32_t kMagic = 0x524d5347;  // "GSMR"
  static constexpr std::uint16_t kVersion = 2;
  /// Read too: its plan has one entry less, for 2 to 8 tokens together.
  static constexpr std::uint16_t kOldestVersion = 1;
  static constexpr int kMaxArrays = 6;
  static constexpr int kTokenBuckets = 8;

  std::uint32_t magic = kMagic;
  std::uint16_t version = kVersion;
  DType dtype = DType::kFloat32;
  /// 1: the module stores [in, out] (GPT-2's Conv1D); the arrays do not change.
  std::uint8_t transposed = 0;
  Layout layout = Layout::kBitmask;
  Pattern::Kind pattern_kind = Pattern::Kind::kUnstructured;
  std::uint8_t array_count = 0;
  /// 1: a second block lies behind the arrays, the same weight in another layout.
  std::uint8_t has_second = 0;
  /// Which token buckets the plan runs in the second layout: bit 0 is the first bucket. Read it
  /// with in_second().
  std::uint8_t second_buckets = 0;
  std::int32_t pattern_n = 0;
  std::int32_t pattern_m = 0;
  std::int32_t pattern_v = 0;
  std::int32_t block_rows = 0;
  std::int32_t block_cols = 0;
  /// Of a convolution, whose `in` is kernel_h · kernel_w · channels; 0 × 0 for a matrix.
  std::uint16_t kernel_h = 0;
  std::uint16_t kernel_w = 0;
  double sparsity = 0.0;
  std::int64_t batch = 1;
  std::int64_t out = 0;
  std::int64_t in = 0;
  /// Stored positions of all batches: padding of N:M and fan-in and whole blocks of bsr included.
  std::int64_t kept = 0;
  std::int64_t total_bytes = 0;  ///< header and arrays, and the second block where there is one
  struct Array {
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
  };
  std::array<Array, kMaxArrays> arrays{};
  /// The plan: for each token bucket the hash of the chosen kernel's name (linear.h), 0 where none.
  /// Read it with planned().
  std::array<std::uint32_t, kTokenBuckets> plan{};
  std::array<std::uint8_t, 40> reserved2{};

  /// What a header of any version says of a token bucket of today.
  std::uint32_t planned(int bucket) const { return plan[slot(bucket)]; }
  bool in_second(int bucket) const { return (second_buckets >> slot(bucket) & 1) != 0; }
  /// Takes over the plan of another header, whatever its version, and where both have a second
  /// layout the buckets that run in it.
  void set_plan(const PackedHeader& other);

 private:
  std::size_t slot(int bucket) const {
    return static_cast<std::size_t>(version == kOldestVersion && bucket > 1 ? bucket - 1 : bucket);
  }
};
static_assert(sizeof(PackedHeader) == 256);

/// One array of a format: what a file holds.
struct PackedArray {
  std::string_view name;  ///< "values", "indices", …
  DType dtype = DType::kUInt8;
  std::vector<std::int64_t> shape;  ///< with a leading batch dimension where batch > 1
  std::span<const std::byte> bytes;
};

/// A packed weight in memory that somebody else owns (a tensor, a mapped file, a PackedWeight).
class PackedView {
 public:
  /// Checks the header alone: magic, version, sizes, and that every array lies inside; O(1), so a
  /// kernel may be called on the result only if the bytes came from pack() or passed validate().
  /// `data` must be 64-byte aligned or this throws Error(kMalformedData), as for any other fault.
  static PackedView open(const std::byte* data, std::int64_t bytes);

  const PackedHeader& header() const { return *header_; }
  Layout layout() const { return header_->layout; }
  DType dtype() const { return header_->dtype; }
  std::int64_t batch() const { return header_->batch; }
  std::int64_t out() const { return header_->out; }
  std::int64_t in() const { return header_->in; }
  std::int64_t kept() const { return header_->kept; }
  /// Of the whole block, a second layout included.
  std::int64_t size_bytes() const { return header_->total_bytes; }
  /// Of this layout alone.
  std::int64_t layout_bytes() const;
  /// The same weight in the block's other layout, where it holds two. Checks the header as open()
  /// does, and that both speak of a weight of the same shape and dtype.
  std::optional<PackedView> second() const;
  Pattern pattern() const;
  bool transposed() const { return header_->transposed != 0; }
  /// The taps of a convolution's kernel; 1 for a matrix.
  std::int64_t taps() const {
    return header_->kernel_h == 0 ? 1 : std::int64_t{header_->kernel_h} * header_->kernel_w;
  }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(header_); }

  /// Array `index` in the order that the layout lists them.
  template <typename T = std::byte>
  const T* array(int index) const {
    return reinterpret_cast<const T*>(data() +
                                      header_->arrays[static_cast<std::size_t>(index)].offset);
  }

 private:
  explicit PackedView(const PackedHeader* header) : header_(header) {}
  const PackedHeader* header_;
};

/// A packed weight that owns its bytes.
class PackedWeight {
 public:
  PackedWeight(std::shared_ptr<std::byte> data, std::int64_t bytes)
      : data_(std::move(data)), bytes_(bytes) {}

  PackedView view() const { return PackedView::open(data_.get(), bytes_); }
  operator PackedView() const { return view(); }  // NOLINT(google-explicit-constructor)
  std::byte* data() const { return data_.get(); }
  std::int64_t size_bytes() const { return bytes_; }
  /// Shared so that a door can hand the same memory on (a torch tensor, say).
  const std::shared_ptr<std::byte>& storage() const { return data_; }

 private:
  std::shared_ptr<std::byte> data_;
  std::int64_t bytes_;
};

/// Where packed weights get their memory; 64-byte aligned. Empty: operator new.
using PackedAllocator = std::function<std::shared_ptr<std::byte>(std::int64_t bytes)>;

struct PackOptions {
  bool transposed = false;      ///< recorded; `values` is always given as [batch,] out, in
  std::string name = "weight";  ///< how error messages call it
  PackedAllocator allocator{};
  /// Of a convolution [OC, IC, KH, KW]: `values` is its matrix [OC, KH·KW·IC]. 0 × 0: a matrix.
  std::int64_t kernel_h = 0;
  std::int64_t kernel_w = 0;
  ParallelFor parallel{};  ///< used for `bitmask` and for 2:4 as `nm`, with 16- or 32-bit elements
};

/// Packs the kept positions of `values` ([batch,] out × in). `mask` (bool, same shape) says which
/// are kept; without it the non-zeros are. Verifies the pattern first and throws
/// Error(kPatternViolation) naming batch, row and columns. A kept −0.0 is stored as +0.0. N:M keeps
/// exactly N a group and fan-in the same number a row: missing ones are filled with zeros at the
/// lowest free positions (of the last, partial N:M group too, where columns past the end are
/// dropped columns that hold zeros).
PackedWeight pack(const ConstMatrixView& values, const ConstMatrixView* mask,
                  const Pattern& pattern, Layout layout, const PackOptions& options = {});

/// Writes the dense values (dtype of the weight, zeros where nothing is kept) and, unless it is
/// null, the bool mask of kept positions. Views must have the weight's logical shape.
void unpack(const PackedView& packed, const MatrixView& values, const MatrixView* mask = nullptr,
            const ParallelFor& parallel = {});

/// The mask alone.
void unpack_mask(const PackedView& packed, const MatrixView& mask,
                 const ParallelFor& parallel = {});

/// The same weight in another layout or format. Of a block that holds two layouts only the first
/// is read, and the result holds one: so do slice_rows, concat_rows, unpack and format_arrays.
PackedWeight convert(const PackedView& packed, Layout layout,
                     const PackedAllocator& allocator = {});

/// The same weight in two layouts, one block behind the other: a plan may run few tokens in one and
/// many in the other. `first` is what the header of the whole describes. They must differ, or this
/// throws Error(kInvalidArgument).
PackedWeight convert(const PackedView& packed, Layout first, Layout second,
                     const PackedAllocator& allocator = {});

/// The same in two steps, so that `packed` can be freed in between: the block with room for the
/// second layout, which is not there yet (PackedView::second() refuses it), and the second layout,
/// made from the first. The allocator's memory behind the first layout is not touched, but for a
/// header.
PackedWeight convert_leaving_room(const PackedView& packed, Layout first, Layout second,
                                  const PackedAllocator& allocator = {});
void fill_second(std::byte* block, std::int64_t bytes, Layout second);

/// Bytes that convert() to one layout takes, counted as it counts: exact, and of row pairs as slow
/// as pairing the rows.
std::int64_t converted_size_bytes(const PackedView& packed, Layout layout);

/// Rows [begin, end) of every batch as a weight of their own, same layout. Block layouts are cut at
/// block rows only: Error(kInvalidArgument) names the nearest ones.
PackedWeight slice_rows(const PackedView& packed, std::int64_t begin, std::int64_t end,
                        const PackedAllocator& allocator = {});

/// The inverse: parts of equal layout, dtype, pattern, batch and in, stacked along out.
PackedWeight concat_rows(std::span<const PackedView> parts, const PackedAllocator& allocator = {});

/// Checks every offset and index, O(size). Bytes that pass can be given to any kernel safely.
/// Throws Error(kMalformedData).
void validate(const PackedView& packed);

/// The arrays of a packed weight whose layout is a format, as a file stores them.
std::vector<PackedArray> format_arrays(const PackedView& packed);

/// What a file says about a packed weight beside its arrays.
struct FormatInfo {
  Layout format = Layout::kBitmask;
  DType dtype = DType::kFloat32;
  Pattern pattern;
  std::int64_t batch = 1;
  std::int64_t out = 0;
  std::int64_t in = 0;
  bool transposed = false;
  std::int64_t kernel_h = 0;  ///< of a convolution; 0 × 0 for a matrix
  std::int64_t kernel_w = 0;
};

/// Rebuilds (and validates) a packed weight from the arrays of a file. Throws Error(kMalformedData)
/// where an array is missing, has another dtype or shape, or an index lies outside.
PackedWeight from_format_arrays(const FormatInfo& info, std::span<const PackedArray> arrays,
                                const PackedAllocator& allocator = {});

/// Bytes that `pack` will need for `kept` positions (of all batches), before packing.
/// For `bsr`, `kept` counts whole blocks' elements. Row pairs need less where rows share columns.
std::int64_t packed_size_bytes(Layout layout, const Pattern& pattern, DType dtype,
                               std::int64_t batch, std::int64_t out, std::int64_t in,
                               std::int64_t kept);

}  // namespace gossamer
