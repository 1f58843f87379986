// SPDX-License-Identifier: BSD-3-Clause
// N:M along rows and columns of one M×M tile, M over 4. The relaxation, shares in [0, 1] whose rows
// and columns add up to N, with a little entropy, is solved by Dykstra's alternating projections
// (rows, columns, the cap of 1), each of which only rescales shares. The shares decide what is
// taken first; then under-full rows and columns are filled, and pairs are exchanged while the sum
// of scores grows.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "prune/transposable.h"

namespace gossamer::detail {
namespace {

/// Scores are this many times the entropy's weight. e^40 · e^40 is far inside of float64.
constexpr double kSharpness = 40.0;
constexpr int kIterations = 60;

}  // namespace

EntropicTile::EntropicTile(int n, int m)
    : n_(n),
      m_(m),
      scores_(static_cast<std::size_t>(m * m)),
      shares_(scores_.size()),
      capped_(scores_.size()),
      order_(scores_.size()),
      rows_(static_cast<std::size_t>(m)),
      row_counts_(rows_.size()),
      col_counts_(rows_.size()) {}

const std::vector<std::uint32_t>& EntropicTile::solve(const float* scores, std::int64_t stride) {
  load(scores, stride);
  balance();
  round();
  fill();
  improve();
  return rows_;
}

// A constant that is added to all scores changes no choice: every mask keeps equally many.
void EntropicTile::load(const float* scores, std::int64_t stride) {
  double low = scores[0];
  double high = low;
  for (int r = 0; r < m_; ++r) {
    for (int c = 0; c < m_; ++c) {
      const double value = scores[r * stride + c];
      scores_[at(r, c)] = value;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  const double range = high > low ? high - low : 1.0;
  for (double& value : scores_) value = (value - low) / range;
}

void EntropicTile::balance() {
  for (std::size_t i = 0; i < scores_.size(); ++i) {
    shares_[i] = std::exp(kSharpness * (scores_[i] - 1.0));
  }
  std::fill(capped_.begin(), capped_.end(), 1.0);
  std::vector<double> sums(static_cast<std::size_t>(m_));
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    for (int r = 0; r < m_; ++r) {
      double* const row = &shares_[at(r, 0)];
      const double factor = n_ / std::accumulate(row, row + m_, 0.0);
      for (int c = 0; c < m_; ++c) row[c] *= factor;
    }
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int r = 0; r < m_; ++r) {
      for (int c = 0; c < m_; ++c) sums[static_cast<std::size_t>(c)] += share(r, c);
    }
    for (double& sum : sums) sum = n_ / sum;
    for (int r = 0; r < m_; ++r) {
      for (int c = 0; c < m_; ++c) share(r, c) *= sums[static_cast<std::size_t>(c)];
    }
    for (std::size_t i = 0; i < shares_.size(); ++i) {
      const double free = shares_[i] * capped_[i];
      shares_[i] = std::min(free, 1.0);
      capped_[i] = free / shares_[i];
    }
  }
}

void EntropicTile::flip(int row, int col) {
  const int change = kept(row, col) ? -1 : 1;
  rows_[static_cast<std::size_t>(row)] ^= std::uint32_t{1} << col;
  row_counts_[static_cast<std::size_t>(row)] += change;
  col_counts_[static_cast<std::size_t>(col)] += change;
}

/// Takes shares from the largest on where row and column have room; among equals the larger score,
/// then the lower index.
void EntropicTile::round() {
  std::fill(rows_.begin(), rows_.end(), 0);
  std::fill(row_counts_.begin(), row_counts_.end(), 0);
  std::fill(col_counts_.begin(), col_counts_.end(), 0);
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(), [&](int a, int b) {
    const auto i = static_cast<std::size_t>(a);
    const auto j = static_cast<std::size_t>(b);
    if (shares_[i] != shares_[j]) return shares_[i] > shares_[j];
    return scores_[i] != scores_[j] ? scores_[i] > scores_[j] : a < b;
  });
  for (const int at : order_) {
    const int row = at / m_;
    const int col = at % m_;
    if (row_counts_[static_cast<std::size_t>(row)] < n_ &&
        col_counts_[static_cast<std::size_t>(col)] < n_) {
      flip(row, col);
    }
  }
}

/// Gives an under-full row and an under-full column one more each: directly, or by taking (row, c)
/// and (r, col) for (r, c), whichever costs least. One of the two is always there: where no such
/// pair is free, the rows that lack `col` are at least M − N + 1; had they all kept nothing outside
/// of the columns of `row` (N − 1 at most), each column outside would have N − 1 rows at most, be
/// under-full, and with it one of those rows a free pair.
bool EntropicTile::exchange(int row, int col) {
  if (!kept(row, col)) {
    flip(row, col);
    return true;
  }
  int best_row = -1;
  int best_col = -1;
  double best = 0.0;
  for (int r = 0; r < m_; ++r) {
    if (kept(r, col)) continue;
    for (int c = 0; c < m_; ++c) {
      if (!kept(r, c) || kept(row, c)) continue;
      const double gain = score(row, c) + score(r, col) - score(r, c);
      if (best_row >= 0 && gain <= best) continue;
      best = gain;
      best_row = r;
      best_col = c;
    }
  }
  if (best_row < 0) return false;
  flip(best_row, best_col);
  flip(row, best_col);
  flip(best_row, col);
  return true;
}

void EntropicTile::fill() {
  bool changed = true;
  while (changed) {
    changed = false;
    for (int r = 0; r < m_; ++r) {
      for (int c = 0; c < m_; ++c) {
        const bool room = row_counts_[static_cast<std::size_t>(r)] < n_ &&
                          col_counts_[static_cast<std::size_t>(c)] < n_;
        if (room) changed = exchange(r, c) || changed;
      }
    }
  }
}

/// Exchanges (r, a) and (s, b) for (r, b) and (s, a) while that raises the sum. Every exchange
/// does, so that it ends; rounding cannot make it go round in circles, since it has to exceed a
/// margin.
void EntropicTile::improve() {
  constexpr double kMargin = 1e-12;
  bool changed = true;
  while (changed) {
    changed = false;
    for (int r = 0; r < m_; ++r) {
      for (int s = r + 1; s < m_; ++s) {
        // Among columns that r alone keeps and those that s alone keeps, the best to trade.
        int give = -1;
        int take = -1;
        double lost = 0.0;
        double won = 0.0;
        for (int c = 0; c < m_; ++c) {
          if (kept(r, c) == kept(s, c)) continue;
          const double gain = score(s, c) - score(r, c);
          if (kept(r, c)) {
            if (give < 0 || gain > won) give = c, won = gain;
          } else if (take < 0 || -gain > lost) {
            take = c, lost = -gain;
          }
        }
        if (give < 0 || take < 0 || !(won + lost > kMargin)) continue;
        flip(r, give);
        flip(s, give);
        flip(r, take);
        flip(s, take);
        changed = true;
      }
    }
  }
}

}  // namespace gossamer::detail
