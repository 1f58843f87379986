// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <atomic>
#include <vector>

#include "core/fail.h"
#include "cpu/transposable.h"
#include "gossamer/solve.h"
#include "prune/tile_panel.h"
#include "prune/transposable.h"

namespace gossamer {
namespace {

using detail::fail;
using detail::TilePanel;

constexpr int kMostSide = 32;

void check(const ConstMatrixView& scores, int n, int m, const MatrixView& mask) {
  if (m < 2 || m > kMostSide || (m & (m - 1)) != 0 || n < 1 || n > m) {
    fail(ErrorCode::kInvalidArgument,
         "transposable {}:{}: 1 <= N <= M and M one of 2, 4, 8, 16, 32 is accepted", n, m);
  }
  if ((scores.dtype != DType::kFloat32 && scores.dtype != DType::kFloat64) ||
      mask.dtype != DType::kBool) {
    fail(ErrorCode::kInvalidArgument,
         "transposable {}:{}: scores are {} and the mask {}, expected float32 or float64 and bool",
         n, m, dtype_name(scores.dtype), dtype_name(mask.dtype));
  }
  if (mask.batch != scores.batch || mask.rows != scores.rows || mask.cols != scores.cols) {
    fail(ErrorCode::kInvalidArgument,
         "transposable {}:{}: the mask is [{}, {}, {}], the scores [{}, {}, {}]", n, m, mask.batch,
         mask.rows, mask.cols, scores.batch, scores.rows, scores.cols);
  }
}

/// Whether four rows of scores from `first` on can be read, and those of the mask written, where
/// they lie.
bool is_direct(const ConstMatrixView& scores, const MatrixView& mask, std::int64_t first) {
  return scores.dtype == DType::kFloat32 && scores.col_stride == 1 && mask.col_stride == 1 &&
         first + 4 <= scores.rows && scores.cols % 4 == 0;
}

/// A row of 2:4 tiles without a copy; false where a score is no finite number.
bool mask_direct_24(const ConstMatrixView& scores, const MatrixView& mask, std::int64_t batch,
                    std::int64_t first) {
  cpu::TransposableTask task;
  task.tiles = scores.cols / 4;
  for (std::int64_t r = 0; r < 4; ++r) {
    const std::int64_t from = batch * scores.batch_stride + (first + r) * scores.row_stride;
    task.scores[r] = reinterpret_cast<const float*>(scores.data) + from;
    const std::int64_t to = batch * mask.batch_stride + (first + r) * mask.row_stride;
    task.mask[r] = reinterpret_cast<std::uint8_t*>(mask.data) + to;
  }
  return cpu::transposable_24(task);
}

/// A row of 2:4 tiles by way of a panel; `kept` takes its mask, rows of whole tiles.
void mask_panel_24(const TilePanel& panel, std::vector<std::uint8_t>& kept, const MatrixView& mask,
                   std::int64_t batch, std::int64_t first) {
  const std::int64_t width = panel.tiles() * 4;
  kept.resize(static_cast<std::size_t>(width * 4));
  cpu::TransposableTask task;
  task.tiles = panel.tiles();
  for (std::int64_t r = 0; r < 4; ++r) {
    task.scores[r] = panel.row(r);
    task.mask[r] = kept.data() + r * width;
  }
  cpu::transposable_24(task);
  for (std::int64_t r = 0; r < std::min<std::int64_t>(4, mask.rows - first); ++r) {
    auto* const to = reinterpret_cast<std::uint8_t*>(mask.data) + batch * mask.batch_stride +
                     (first + r) * mask.row_stride;
    for (std::int64_t c = 0; c < mask.cols; ++c) to[c * mask.col_stride] = task.mask[r][c];
  }
}

}  // namespace

void transposable_mask(const ConstMatrixView& scores, int n, int m, const MatrixView& mask,
                       const ParallelFor& parallel) {
  check(scores, n, m, mask);
  if (scores.rows == 0 || scores.cols == 0) return;
  const std::int64_t panels = (scores.rows + m - 1) / m;
  std::atomic<std::int64_t> bad{-1};
  parallel_for(parallel, scores.batch * panels, [&](std::int64_t begin, std::int64_t end) {
    TilePanel panel(scores, m);
    detail::EntropicTile solver(n, m);
    std::vector<std::uint8_t> kept;
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t batch = p / panels;
      const std::int64_t first = p % panels * m;
      const bool direct = n == 2 && m == 4 && is_direct(scores, mask, first);
      if (direct && mask_direct_24(scores, mask, batch, first)) continue;
      panel.read(batch, first);
      if (panel.bad_row() >= 0) {
        bad = batch * scores.rows + first + panel.bad_row();
        return;
      }
      if (n == 2 && m == 4) {
        mask_panel_24(panel, kept, mask, batch, first);
        continue;
      }
      for (std::int64_t tile = 0; tile < panel.tiles(); ++tile) {
        const auto& rows = solver.solve(panel.row(0) + tile * m, panel.tiles() * m);
        detail::write_tile(mask, batch, first, tile * m, m, rows.data());
      }
    }
  });
  if (bad >= 0) {
    fail(ErrorCode::kInvalidArgument,
         "transposable {}:{}: row {} has a score that is NaN or infinite; scores must be finite "
         "numbers",
         n, m, bad.load());
  }
}

}  // namespace gossamer
