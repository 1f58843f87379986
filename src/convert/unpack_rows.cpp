// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>
#include <vector>

#include "convert/rows.h"
#include "gossamer/machine.h"

namespace gossamer::detail {
namespace {

/// Where the rows of a result are written.
struct Target {
  std::byte* data = nullptr;  // null: nobody asked
  std::int64_t batch_stride = 0;
  std::int64_t row_stride = 0;  // bytes
  bool streaming = false;

  std::byte* row(std::int64_t batch, std::int64_t index) const {
    return data + batch * batch_stride + index * row_stride;
  }
};

/// Results larger than the caches are written past them: what they displace is read again, and a
/// line need not be read before it is written.
Target target_of(const MatrixView* view) {
  constexpr std::int64_t kLine = 64;
  if (view == nullptr) return {};
  const std::int64_t bytes = dtype_bytes(view->dtype);
  Target target{view->data, view->batch_stride * bytes, view->row_stride * bytes, false};
  const bool aligned = reinterpret_cast<std::uintptr_t>(view->data) % kLine == 0 &&
                       target.row_stride % kLine == 0 && target.batch_stride % kLine == 0;
  const std::int64_t size = view->batch * view->rows * view->cols * bytes;
  target.streaming = aligned && size > host_machine().l3_bytes;
  return target;
}

/// Rows of a packed weight: their bits, and where their values begin.
class StoredRows {
 public:
  StoredRows(const PackedView& packed, RowFormat format, const cpu::RowCodec& codec)
      : packed_(packed),
        codec_(codec),
        format_(format),
        bytes_(dtype_bytes(packed.dtype())),
        groups_(ceil_div(packed.in(), 4)) {}

  void read_bits(std::int64_t row, std::vector<std::uint64_t>& bits) const {
    if (packed_.in() == 0) return;
    auto* const to = reinterpret_cast<std::uint8_t*>(bits.data());
    if (format_ == RowFormat::kBitmask) {
      const std::int64_t width = ceil_div(packed_.in(), 8);
      std::memcpy(to, packed_.array(BitmaskArrays::kBitmask) + row * width,
                  static_cast<std::size_t>(width));
      return;
    }
    const std::int64_t width = ceil_div(groups_, 2);
    const auto* const from = packed_.array<std::uint8_t>(NmArrays::kIndices) + row * width;
    codec_.from_nibbles(from, width, to);
  }

  const std::byte* values(std::int64_t batch, std::int64_t row) const {
    if (format_ == RowFormat::kBitmask) {
      const auto* const offsets = packed_.array<std::int64_t>(BitmaskArrays::kRowOffsets);
      return packed_.array(BitmaskArrays::kValues) +
             offsets[batch * (packed_.out() + 1) + row] * bytes_;
    }
    return packed_.array(NmArrays::kValues) + (batch * packed_.out() + row) * groups_ * 2 * bytes_;
  }

 private:
  PackedView packed_;
  cpu::RowCodec codec_;
  RowFormat format_;
  std::int64_t bytes_;
  std::int64_t groups_;
};

}  // namespace

bool unpack_rows(const PackedView& packed, const MatrixView* values, const MatrixView* mask,
                 const ParallelFor& parallel) {
  const auto format = row_format(packed.layout(), packed.pattern(), packed.dtype());
  const auto side_by_side = [](const MatrixView* view) {
    return view == nullptr || view->col_stride == 1;
  };
  if (!format || !side_by_side(values) || !side_by_side(mask)) return false;
  const cpu::RowCodec codec = cpu::row_codec(dtype_bytes(packed.dtype()));
  const StoredRows stored(packed, *format, codec);
  const Target dense = target_of(values);
  const Target kept = target_of(mask);
  const std::int64_t out = packed.out();
  parallel_for(parallel, packed.batch() * out, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint64_t> bits(static_cast<std::size_t>(row_words(packed.in())));
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t batch = r / out;
      stored.read_bits(r, bits);
      if (dense.data != nullptr) {
        codec.expand(stored.values(batch, r % out), bits.data(), packed.in(),
                     dense.row(batch, r % out), dense.streaming);
      }
      if (kept.data != nullptr) {
        auto* const to = reinterpret_cast<std::uint8_t*>(kept.row(batch, r % out));
        codec.spread(bits.data(), packed.in(), to, kept.streaming);
      }
    }
  });
  return true;
}

}  // namespace gossamer::detail
