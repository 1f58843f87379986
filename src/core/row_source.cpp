// SPDX-License-Identifier: BSD-3-Clause
#include "core/row_source.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "core/fail.h"
#include "core/half.h"

namespace gossamer::detail {
namespace {

/// The first element of a row and the distance in bytes between its elements.
struct RowPointer {
  const std::byte* data;
  std::int64_t step;
};

RowPointer row_of(const ConstMatrixView& view, std::int64_t batch, std::int64_t row) {
  const std::int64_t bytes = dtype_bytes(view.dtype);
  return {view.data + (batch * view.batch_stride + row * view.row_stride) * bytes,
          view.col_stride * bytes};
}

/// Calls `f` with a row pointer whose step the compiler knows where elements are adjacent.
template <typename Raw, typename F>
void with_step(const RowPointer& row, const F& f) {
  if (row.step == static_cast<std::int64_t>(sizeof(Raw))) {
    f(std::integral_constant<std::int64_t, sizeof(Raw)>{});
  } else {
    f(row.step);
  }
}

class DenseSource final : public RowSource {
 public:
  DenseSource(const ConstMatrixView& values, const ConstMatrixView* mask)
      : RowSource(values.dtype, values.batch, values.rows, values.cols),
        values_(values),
        bytes_(dtype_bytes(values.dtype)) {
    if (mask != nullptr) mask_ = *mask;
  }

  void read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const override {
    if (mask_) return copy_mask(*mask_, batch, row, mask);
    const RowPointer from = row_of(values_, batch, row);
    with_raw_type(bytes_, [&]<typename Raw>(Raw) {
      const auto bits = magnitude_bits<Raw>(dtype());
      with_step<Raw>(from, [&](auto step) {
        for (std::int64_t i = 0; i < in(); ++i) {
          mask[i] = (load_raw<Raw>(from.data + i * step) & bits) != 0 ? 1 : 0;
        }
      });
    });
  }

  void read(std::int64_t batch, std::int64_t row, std::byte* values,
            std::uint8_t* mask) const override {
    read_mask(batch, row, mask);
    const RowPointer from = row_of(values_, batch, row);
    with_raw_type(bytes_, [&]<typename Raw>(Raw) {
      const auto bits = magnitude_bits<Raw>(dtype());
      with_step<Raw>(from, [&](auto step) {
        for (std::int64_t i = 0; i < in(); ++i) {
          const auto value = load_raw<Raw>(from.data + i * step);
          const bool zero = mask[i] == 0 || (value & bits) == 0;
          store_raw<Raw>(values + i * std::int64_t{sizeof(Raw)}, zero ? Raw{0} : value);
        }
      });
    });
  }

 private:
  void copy_mask(const ConstMatrixView& stored, std::int64_t batch, std::int64_t row,
                 std::uint8_t* mask) const {
    const RowPointer from = row_of(stored, batch, row);
    with_step<std::uint8_t>(from, [&](auto step) {
      for (std::int64_t i = 0; i < in(); ++i) {
        mask[i] = load_raw<std::uint8_t>(from.data + i * step) != 0 ? 1 : 0;
      }
    });
  }

  ConstMatrixView values_;
  std::optional<ConstMatrixView> mask_;
  std::int64_t bytes_;
};

class SlicedSource final : public RowSource {
 public:
  SlicedSource(const RowSource& whole, std::int64_t begin, std::int64_t end)
      : RowSource(whole.dtype(), whole.batch(), end - begin, whole.in()),
        whole_(whole),
        begin_(begin) {}

  void read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const override {
    whole_.read_mask(batch, begin_ + row, mask);
  }
  void read(std::int64_t batch, std::int64_t row, std::byte* values,
            std::uint8_t* mask) const override {
    whole_.read(batch, begin_ + row, values, mask);
  }

 private:
  const RowSource& whole_;
  std::int64_t begin_;
};

class StackedSource final : public RowSource {
 public:
  StackedSource(std::vector<std::unique_ptr<RowSource>> parts, std::vector<std::int64_t> ends)
      : RowSource(parts[0]->dtype(), parts[0]->batch(), ends.back(), parts[0]->in()),
        parts_(std::move(parts)),
        ends_(std::move(ends)) {}

  void read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const override {
    const auto [part, local] = locate(row);
    part->read_mask(batch, local, mask);
  }
  void read(std::int64_t batch, std::int64_t row, std::byte* values,
            std::uint8_t* mask) const override {
    const auto [part, local] = locate(row);
    part->read(batch, local, values, mask);
  }

 private:
  std::pair<const RowSource*, std::int64_t> locate(std::int64_t row) const {
    const auto end = std::upper_bound(ends_.begin(), ends_.end(), row);
    const auto index = static_cast<std::size_t>(end - ends_.begin());
    return {parts_[index].get(), row - (*end - parts_[index]->out())};
  }

  std::vector<std::unique_ptr<RowSource>> parts_;
  std::vector<std::int64_t> ends_;
};

}  // namespace

void check_view(const ConstMatrixView& view, std::string_view what) {
  if (view.batch < 1 || view.rows < 0 || view.cols < 0) {
    fail(ErrorCode::kInvalidArgument,
         "{}: shape [{}, {}, {}]; batch must be at least 1, rows and columns at least 0", what,
         view.batch, view.rows, view.cols);
  }
  if (view.data == nullptr && view.rows > 0 && view.cols > 0) {
    fail(ErrorCode::kInvalidArgument, "{}: no data for a shape of [{}, {}, {}]", what, view.batch,
         view.rows, view.cols);
  }
}

std::unique_ptr<RowSource> dense_source(const ConstMatrixView& values,
                                        const ConstMatrixView* mask) {
  check_view(values, "values");
  if (mask == nullptr) return std::make_unique<DenseSource>(values, mask);
  check_view(*mask, "mask");
  if (mask->dtype != DType::kBool && mask->dtype != DType::kUInt8) {
    fail(ErrorCode::kInvalidArgument, "mask: dtype {}, expected bool", dtype_name(mask->dtype));
  }
  if (mask->batch != values.batch || mask->rows != values.rows || mask->cols != values.cols) {
    fail(ErrorCode::kInvalidArgument,
         "mask: shape [{}, {}, {}], expected that of the values, [{}, {}, {}]", mask->batch,
         mask->rows, mask->cols, values.batch, values.rows, values.cols);
  }
  return std::make_unique<DenseSource>(values, mask);
}

std::unique_ptr<RowSource> sliced_source(const RowSource& whole, std::int64_t begin,
                                         std::int64_t end) {
  return std::make_unique<SlicedSource>(whole, begin, end);
}

std::unique_ptr<RowSource> stacked_source(std::vector<std::unique_ptr<RowSource>> parts) {
  std::vector<std::int64_t> ends;
  ends.reserve(parts.size());
  for (const auto& part : parts) ends.push_back((ends.empty() ? 0 : ends.back()) + part->out());
  return std::make_unique<StackedSource>(std::move(parts), std::move(ends));
}

}  // namespace gossamer::detail
