// SPDX-License-Identifier: BSD-3-Clause
// A 4×4 tile has 90 masks with two kept in every row and column. A row keeps one of six pairs of
// columns, so a mask is two rows above and two below that together use every column twice. What the
// two above use of each column falls into three classes, and the classes give all 90:
//   both keep the same pair        6 ways above, 1 below    = 6
//   complementary pairs            6 ways above, 6 below    = 36
//   pairs that share one column   12 uses, 2 above, 2 below = 48
// The best mask therefore is a maximum over 6 + 1 + 12 sums of a best above and a best below.
// Sixteen tiles go side by side, so that every step is a loop without branches.
#include "prune/transposable.h"

#include <array>
#include <cstdint>

namespace gossamer::detail {
namespace {

constexpr int kTile = 4;
constexpr int kPairs = 6;
constexpr int kLanes = kTilesAtOnce;

/// The pairs of columns; pair 5 − i is the complement of pair i.
constexpr std::array<std::array<int, 2>, kPairs> kPairColumns{
    {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}}};
constexpr std::array<std::int32_t, kPairs> kPairBits{0b0011, 0b0101, 0b1001,
                                                     0b0110, 0b1010, 0b1100};

using Floats = std::array<float, kLanes>;
using Codes = std::array<std::int32_t, kLanes>;
/// Sums of the six pairs of one row.
using PairSums = std::array<Floats, kPairs>;

/// The best pairs for two rows: their sum, and the kept columns as bits, the upper row's lowest.
struct Best {
  Floats sum;
  Codes code;
};

constexpr std::int32_t code_of(int upper, int lower) {
  return kPairBits[static_cast<std::size_t>(upper)] | kPairBits[static_cast<std::size_t>(lower)]
                                                          << kTile;
}

/// Either way round of two pairs on two rows.
Best either(const PairSums& upper, const PairSums& lower, int first, int second) {
  const auto a = static_cast<std::size_t>(first);
  const auto b = static_cast<std::size_t>(second);
  const std::int32_t straight_code = code_of(first, second);
  const std::int32_t crossed_code = code_of(second, first);
  Best best;
  for (std::size_t i = 0; i < kLanes; ++i) {
    const float straight = upper[a][i] + lower[b][i];
    const float crossed = upper[b][i] + lower[a][i];
    best.sum[i] = straight >= crossed ? straight : crossed;
    best.code[i] = straight >= crossed ? straight_code : crossed_code;
  }
  return best;
}

/// Takes what is strictly better.
void offer(Best& best, const Best& other) {
  Best found;  // Not in place: a loop over memory that might overlap is no vector code.
  for (std::size_t i = 0; i < kLanes; ++i) {
    const float now = best.sum[i];
    const float then = other.sum[i];
    const std::int32_t code_now = best.code[i];
    const std::int32_t code_then = other.code[i];
    found.sum[i] = then > now ? then : now;
    found.code[i] = then > now ? code_then : code_now;
  }
  best = found;
}

/// The two upper rows and the two lower ones together.
Best joined(const Best& above, const Best& below) {
  Best whole;
  for (std::size_t i = 0; i < kLanes; ++i) {
    whole.sum[i] = above.sum[i] + below.sum[i];
    whole.code[i] = above.code[i] | below.code[i] << (2 * kTile);
  }
  return whole;
}

/// The best of the six complementary choices on two rows.
Best complementary(const PairSums& upper, const PairSums& lower) {
  Best best = either(upper, lower, 0, kPairs - 1);
  for (int a = 1; a < kPairs / 2; ++a) offer(best, either(upper, lower, a, kPairs - 1 - a));
  return best;
}

PairSums pair_sums(const float* row) {
  std::array<Floats, kTile> columns;
  for (std::size_t i = 0; i < kLanes; ++i) {
    for (std::size_t c = 0; c < kTile; ++c) columns[c][i] = row[i * kTile + c];
  }
  PairSums sums;
  for (std::size_t p = 0; p < kPairs; ++p) {
    const Floats& left = columns[static_cast<std::size_t>(kPairColumns[p][0])];
    const Floats& right = columns[static_cast<std::size_t>(kPairColumns[p][1])];
    for (std::size_t i = 0; i < kLanes; ++i) sums[p][i] = left[i] + right[i];
  }
  return sums;
}

}  // namespace

void best_tiles_24(const std::array<const float*, 4>& rows,
                   std::array<std::int32_t, kTilesAtOnce>& codes) {
  std::array<PairSums, kTile> sums;
  for (std::size_t r = 0; r < kTile; ++r) sums[r] = pair_sums(rows[r]);
  Best best = joined(complementary(sums[0], sums[1]), complementary(sums[2], sums[3]));
  for (int p = 0; p < kPairs; ++p) {
    const int rest = kPairs - 1 - p;
    offer(best, joined(either(sums[0], sums[1], p, p), either(sums[2], sums[3], rest, rest)));
  }
  for (int a = 0; a < kPairs; ++a) {
    for (int b = a + 1; b < kPairs; ++b) {
      if (a + b == kPairs - 1) continue;
      // Columns used {2, 1, 1, 0} above are used {0, 1, 1, 2} below: by the complements.
      offer(best, joined(either(sums[0], sums[1], a, b),
                         either(sums[2], sums[3], kPairs - 1 - a, kPairs - 1 - b)));
    }
  }
  codes = best.code;
}

}  // namespace gossamer::detail
