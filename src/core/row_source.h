// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "gossamer/packed_weight.h"
#include "gossamer/tensor_view.h"

// A weight that can be read row by row, whatever it is made of: a dense view, a packed weight in
// any layout, a slice of one or several stacked. Packing, converting, slicing and stacking are one
// encoder reading different sources.
namespace gossamer::detail {

/// Calls `f` with a zero of the unsigned type that has as many bytes as an element: values are
/// moved, never computed with.
template <typename F>
decltype(auto) with_raw_type(std::int64_t bytes, const F& f) {
  switch (bytes) {
    case 8:
      return f(std::uint64_t{});
    case 4:
      return f(std::uint32_t{});
    case 2:
      return f(std::uint16_t{});
    default:
      return f(std::uint8_t{});
  }
}

/// The bits that make an element non-zero: all but the sign of a float.
template <typename Raw>
Raw magnitude_bits(DType dtype) {
  const auto all = static_cast<Raw>(~Raw{0});
  return dtype <= DType::kFloat8E4M3 ? static_cast<Raw>(all >> 1) : all;
}

/// Not thread-safe: a source may keep scratch rows.
class RowSource {
 public:
  RowSource(DType dtype, std::int64_t batch, std::int64_t out, std::int64_t in)
      : dtype_(dtype), batch_(batch), out_(out), in_(in) {}
  virtual ~RowSource() = default;
  RowSource(const RowSource&) = delete;
  RowSource& operator=(const RowSource&) = delete;

  DType dtype() const { return dtype_; }
  std::int64_t batch() const { return batch_; }
  std::int64_t out() const { return out_; }
  std::int64_t in() const { return in_; }

  /// mask[0..in): 1 where kept, otherwise 0.
  virtual void read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const = 0;

  /// The same and values[0..in): raw elements, +0 where nothing is kept, never −0.
  virtual void read(std::int64_t batch, std::int64_t row, std::byte* values,
                    std::uint8_t* mask) const = 0;

 private:
  DType dtype_;
  std::int64_t batch_;
  std::int64_t out_;
  std::int64_t in_;
};

/// Throws Error(kInvalidArgument) where sizes are negative or data is missing; `what` names the
/// view.
void check_view(const ConstMatrixView& view, std::string_view what);

/// A dense view; kept is what `mask` says, or what is not zero. The views must outlive the source.
std::unique_ptr<RowSource> dense_source(const ConstMatrixView& values, const ConstMatrixView* mask);

/// A packed weight, listing the kept positions of a row as well.
class PackedSource : public RowSource {
 public:
  explicit PackedSource(const PackedView& packed)
      : RowSource(packed.dtype(), packed.batch(), packed.out(), packed.in()), packed_(packed) {}

  /// The kept columns of a row that lie inside the matrix, in the order in which they are stored
  /// (ascending but for convolutions in K-blocked layouts), and unless it is null their raw values.
  /// Both buffers hold `in` elements. Returns how many there are.
  virtual std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                               std::byte* values) const = 0;

  void read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const override;
  void read(std::int64_t batch, std::int64_t row, std::byte* values,
            std::uint8_t* mask) const override;

 protected:
  const PackedView& packed() const { return packed_; }

 private:
  PackedView packed_;
  mutable std::vector<std::int32_t> cols_;
  mutable std::vector<std::byte> values_;
};

std::unique_ptr<PackedSource> packed_source(const PackedView& packed);

/// Rows [begin, end) of `whole`, which must outlive it.
std::unique_ptr<RowSource> sliced_source(const RowSource& whole, std::int64_t begin,
                                         std::int64_t end);

/// The parts, at least one and of equal batch, in and dtype, stacked along out.
std::unique_ptr<RowSource> stacked_source(std::vector<std::unique_ptr<RowSource>> parts);

}  // namespace gossamer::detail
