// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <vector>

namespace gossamer::detail {

/// Finds masks of M×M tiles with N kept in every row and column, M <= 32.
class EntropicTile {
 public:
  EntropicTile(int n, int m);

  /// The mask of a tile of finite scores [m, m], rows `stride` apart: bit c of the result's row r.
  const std::vector<std::uint32_t>& solve(const float* scores, std::int64_t stride);

 private:
  void load(const float* scores, std::int64_t stride);
  void balance();
  void round();
  void fill();
  void improve();
  std::size_t at(std::size_t row, std::size_t col) const {
    return row * static_cast<std::size_t>(m_) + col;
  }
  std::size_t at(int row, int col) const {
    return at(static_cast<std::size_t>(row), static_cast<std::size_t>(col));
  }
  double& share(int row, int col) { return shares_[at(row, col)]; }
  double score(int row, int col) const { return scores_[at(row, col)]; }
  bool kept(int row, int col) const {
    return (rows_[static_cast<std::size_t>(row)] >> col & 1) != 0;
  }
  void flip(int row, int col);
  bool exchange(int row, int col);

  int n_;
  int m_;
  std::vector<double> scores_;  // 0 for the lowest of the tile, 1 for the highest
  std::vector<double> shares_;
  std::vector<double> capped_;
  std::vector<int> order_;
  std::vector<std::uint32_t> rows_;
  std::vector<int> row_counts_;
  std::vector<int> col_counts_;
};

}  // namespace gossamer::detail
