// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/half.h"
#include "gossamer/tensor_view.h"

namespace gossamer::detail {

/// The rows of scores that a row of M×M tiles reads, as float32, padded with zeros to whole tiles.
class TilePanel {
 public:
  TilePanel(const ConstMatrixView& scores, std::int64_t side)
      : scores_(scores),
        side_(side),
        padded_((scores.cols + side - 1) / side * side),
        values_(static_cast<std::size_t>(padded_ * side)) {}

  /// Reads rows [first, first + M) of a batch.
  void read(std::int64_t batch, std::int64_t first) {
    const std::int64_t rows = std::min(side_, scores_.rows - first);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = batch * scores_.batch_stride + (first + r) * scores_.row_stride;
      float* const row = values_.data() + r * padded_;
      const std::byte* const from = scores_.data + at * dtype_bytes(scores_.dtype);
      if (scores_.dtype == DType::kFloat32 && scores_.col_stride == 1) {
        std::memcpy(row, from, static_cast<std::size_t>(scores_.cols) * sizeof(float));
      } else {
        load_row(scores_.dtype, from, scores_.cols, scores_.col_stride, row);
      }
    }
    std::fill(values_.begin() + rows * padded_, values_.end(), 0.0f);
    bad_row_ = -1;
    for (std::int64_t r = 0; r < rows && bad_row_ < 0; ++r) {
      const float* const row = values_.data() + r * padded_;
      int bad = 0;  // NaN and the infinities alone differ from themselves times zero.
      for (std::int64_t c = 0; c < scores_.cols; ++c) bad |= row[c] * 0.0f == 0.0f ? 0 : 1;
      if (bad != 0) bad_row_ = r;
    }
  }

  /// The row of the panel that holds a score which is no finite number; −1 for none.
  std::int64_t bad_row() const { return bad_row_; }

  const float* row(std::int64_t r) const { return values_.data() + r * padded_; }
  std::int64_t tiles() const { return padded_ / side_; }

 private:
  ConstMatrixView scores_;
  std::int64_t side_;
  std::int64_t padded_;
  std::vector<float> values_;
  std::int64_t bad_row_ = -1;
};

/// Writes the bits of a tile's rows (bit c of rows[r]: column c is kept) where the mask has them.
template <typename Bits>
void write_tile(const MatrixView& mask, std::int64_t batch, std::int64_t first, std::int64_t col,
                std::int64_t side, const Bits* rows) {
  const std::int64_t high = std::min(side, mask.rows - first);
  const std::int64_t wide = std::min(side, mask.cols - col);
  auto* const corner = reinterpret_cast<std::uint8_t*>(mask.data) + batch * mask.batch_stride +
                       first * mask.row_stride + col * mask.col_stride;
  for (std::int64_t r = 0; r < high; ++r) {
    for (std::int64_t c = 0; c < wide; ++c) {
      corner[r * mask.row_stride + c * mask.col_stride] = (rows[r] >> c) & 1;
    }
  }
}

}  // namespace gossamer::detail
