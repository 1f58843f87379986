// SPDX-License-Identifier: BSD-3-Clause
// A 4×4 tile has 90 masks with two kept in every row and column. A row keeps one of six pairs of
// columns, so a mask is two rows above and two below that together use every column twice. What the
// two above use of each column falls into three classes, and the classes give all 90:
//   both keep the same pair        6 ways above, 1 below    = 6
//   complementary pairs            6 ways above, 6 below    = 36
//   pairs that share one column   12 uses, 2 above, 2 below = 48
// The best mask therefore is a maximum over 6 + 1 + 12 sums of a best above and a best below.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/fail.h"
#include "core/half.h"
#include "gossamer/solve.h"

namespace gossamer {
namespace {

constexpr int kTile = 4;
constexpr int kPairs = 6;
constexpr int kMixed = 12;

/// The pairs of columns as bits; pair 5 − i is the complement of pair i.
constexpr std::array<std::uint8_t, kPairs> kPairBits{0b0011, 0b0101, 0b1001,
                                                     0b0110, 0b1010, 0b1100};
constexpr std::array<std::array<int, 2>, kPairs> kPairColumns{
    {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}}};

/// Two pairs that use one column twice, two once and one not at all; the complements are the two
/// pairs below.
struct Mixed {
  int first = 0;
  int second = 0;
};

/// The twelve ways, as the pairs (first < second) that share one column.
constexpr std::array<Mixed, kMixed> mixed_pairs() {
  std::array<Mixed, kMixed> found{};
  int count = 0;
  for (int a = 0; a < kPairs; ++a) {
    for (int b = a + 1; b < kPairs; ++b) {
      if (a + b != kPairs - 1) found[static_cast<std::size_t>(count++)] = {a, b};
    }
  }
  return found;
}
constexpr auto kMixedPairs = mixed_pairs();

using Tile = std::array<std::array<float, kTile>, kTile>;
using Rows = std::array<std::uint8_t, kTile>;
using PairSums = std::array<std::array<float, kPairs>, kTile>;

/// The best pairs for two rows, and their sum.
struct Best {
  float sum = 0.0f;
  int upper = 0;
  int lower = 0;
};

/// Either way round of two pairs on two rows.
Best either(const PairSums& sums, std::size_t row, int a, int b) {
  const auto at = [&](std::size_t r, int pair) { return sums[r][static_cast<std::size_t>(pair)]; };
  const float straight = at(row, a) + at(row + 1, b);
  const float crossed = at(row, b) + at(row + 1, a);
  return straight >= crossed ? Best{straight, a, b} : Best{crossed, b, a};
}

/// The best of the six complementary choices on two rows.
Best complementary(const PairSums& sums, std::size_t row) {
  Best best = either(sums, row, 0, kPairs - 1);
  for (int a = 1; a < kPairs / 2; ++a) {
    const Best other = either(sums, row, a, kPairs - 1 - a);
    if (other.sum > best.sum) best = other;
  }
  return best;
}

Rows best_rows(const Tile& tile) {
  PairSums sums;
  for (std::size_t r = 0; r < kTile; ++r) {
    for (std::size_t p = 0; p < kPairs; ++p) {
      sums[r][p] = tile[r][static_cast<std::size_t>(kPairColumns[p][0])] +
                   tile[r][static_cast<std::size_t>(kPairColumns[p][1])];
    }
  }
  Best above = complementary(sums, 0);
  Best below = complementary(sums, 2);
  float best = above.sum + below.sum;
  const auto offer = [&](const Best& upper, const Best& lower) {
    if (!(upper.sum + lower.sum > best)) return;
    best = upper.sum + lower.sum;
    above = upper;
    below = lower;
  };
  for (int p = 0; p < kPairs; ++p) {
    offer(either(sums, 0, p, p), either(sums, 2, kPairs - 1 - p, kPairs - 1 - p));
  }
  for (const Mixed& pairs : kMixedPairs) {
    // Columns used {2, 1, 1, 0} above are used {0, 1, 1, 2} below: by the complements.
    offer(either(sums, 0, pairs.first, pairs.second),
          either(sums, 2, kPairs - 1 - pairs.first, kPairs - 1 - pairs.second));
  }
  const auto bits = [](int pair) { return kPairBits[static_cast<std::size_t>(pair)]; };
  return {bits(above.upper), bits(above.lower), bits(below.upper), bits(below.lower)};
}

/// The four rows of scores that a row of tiles reads, padded with zeros to whole tiles.
class Panel {
 public:
  explicit Panel(const ConstMatrixView& scores)
      : scores_(scores),
        padded_(static_cast<std::size_t>((scores.cols + kTile - 1) / kTile * kTile)),
        row_(padded_) {}

  void read(std::int64_t batch, std::int64_t first) {
    values_.assign(padded_ * kTile, 0.0f);
    for (std::int64_t r = 0; r < std::min<std::int64_t>(kTile, scores_.rows - first); ++r) {
      const std::int64_t at = batch * scores_.batch_stride + (first + r) * scores_.row_stride;
      detail::load_row(scores_.dtype, scores_.data + at * dtype_bytes(scores_.dtype), scores_.cols,
                       scores_.col_stride, row_.data());
      for (std::int64_t c = 0; c < scores_.cols; ++c) {
        values_[static_cast<std::size_t>(r) * padded_ + static_cast<std::size_t>(c)] =
            static_cast<float>(row_[static_cast<std::size_t>(c)]);
      }
    }
  }

  Tile tile(std::int64_t col) const {
    Tile tile;
    for (std::size_t r = 0; r < kTile; ++r) {
      std::copy_n(values_.data() + r * padded_ + col, kTile, tile[r].data());
    }
    return tile;
  }

 private:
  ConstMatrixView scores_;
  std::size_t padded_;
  std::vector<double> row_;
  std::vector<float> values_;
};

void check_scores(const ConstMatrixView& scores, const MatrixView& mask) {
  if ((scores.dtype != DType::kFloat32 && scores.dtype != DType::kFloat64) ||
      mask.dtype != DType::kBool) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "transposable 2:4: scores are {} and the mask {}, expected float32 or float64 and "
                 "bool",
                 dtype_name(scores.dtype), dtype_name(mask.dtype));
  }
  if (mask.batch != scores.batch || mask.rows != scores.rows || mask.cols != scores.cols) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "transposable 2:4: the mask is [{}, {}, {}], the scores [{}, {}, {}]", mask.batch,
                 mask.rows, mask.cols, scores.batch, scores.rows, scores.cols);
  }
  std::vector<double> row(static_cast<std::size_t>(scores.cols));
  for (std::int64_t r = 0; scores.cols > 0 && r < scores.batch * scores.rows; ++r) {
    const std::int64_t at =
        r / scores.rows * scores.batch_stride + r % scores.rows * scores.row_stride;
    detail::load_row(scores.dtype, scores.data + at * dtype_bytes(scores.dtype), scores.cols,
                     scores.col_stride, row.data());
    for (std::size_t c = 0; c < row.size(); ++c) {
      if (!std::isnan(row[c])) continue;
      detail::fail(ErrorCode::kInvalidArgument,
                   "transposable 2:4: the score at row {}, column {} is NaN; scores must be "
                   "numbers",
                   r, c);
    }
  }
}

}  // namespace

void transposable_mask_24(const ConstMatrixView& scores, const MatrixView& mask,
                          const ParallelFor& parallel) {
  check_scores(scores, mask);
  if (scores.rows == 0 || scores.cols == 0) return;
  const std::int64_t panels = (scores.rows + kTile - 1) / kTile;
  parallel_for(parallel, scores.batch * panels, [&](std::int64_t begin, std::int64_t end) {
    Panel panel(scores);
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t batch = p / panels;
      const std::int64_t first = p % panels * kTile;
      panel.read(batch, first);
      for (std::int64_t col = 0; col < scores.cols; col += kTile) {
        const Rows kept = best_rows(panel.tile(col));
        for (std::int64_t r = first; r < std::min(first + kTile, scores.rows); ++r) {
          auto* const to = reinterpret_cast<std::uint8_t*>(mask.data) + batch * mask.batch_stride +
                           r * mask.row_stride;
          for (std::int64_t c = col; c < std::min(col + kTile, scores.cols); ++c) {
            to[c * mask.col_stride] =
                static_cast<std::uint8_t>(kept[static_cast<std::size_t>(r - first)] >> (c - col)) &
                1;
          }
        }
      }
    }
  });
}

}  // namespace gossamer
