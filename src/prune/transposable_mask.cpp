// SPDX-License-Identifier: BSD-3-Clause
#include <array>
#include <atomic>
#include <cstring>

#include "core/fail.h"
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

/// Four bits as four bytes, the lowest bit first in memory.
constexpr std::array<std::uint32_t, 16> bytes_of_bits() {
  std::array<std::uint32_t, 16> bytes{};
  for (std::uint32_t bits = 0; bits < 16; ++bits) {
    for (std::uint32_t i = 0; i < 4; ++i) bytes[bits] |= (bits >> i & 1) << (8 * i);
  }
  return bytes;
}

/// A whole 2:4 tile of a mask whose columns lie side by side.
void write_whole_24(std::byte* corner, std::int64_t row_stride, std::int32_t code) {
  static constexpr auto kBytes = bytes_of_bits();
  for (int r = 0; r < 4; ++r) {
    const std::uint32_t bytes = kBytes[static_cast<std::size_t>(code >> (4 * r) & 15)];
    std::memcpy(corner + r * row_stride, &bytes, sizeof(bytes));
  }
}

/// One row of tiles, 2:4.
void mask_panel_24(const TilePanel& panel, const MatrixView& mask, std::int64_t batch,
                   std::int64_t first) {
  constexpr int kTile = 4;
  std::array<float, static_cast<std::size_t>(detail::kTilesAtOnce) * kTile> rest[kTile] = {};
  std::array<std::int32_t, detail::kTilesAtOnce> codes{};
  for (std::int64_t tile = 0; tile < panel.tiles(); tile += detail::kTilesAtOnce) {
    const std::int64_t count = std::min<std::int64_t>(detail::kTilesAtOnce, panel.tiles() - tile);
    std::array<const float*, kTile> rows{};
    for (std::int64_t r = 0; r < kTile; ++r) {
      const float* const from = panel.row(r) + tile * kTile;
      rows[static_cast<std::size_t>(r)] = from;
      if (count == detail::kTilesAtOnce) continue;
      std::copy_n(from, count * kTile, rest[r].data());
      rows[static_cast<std::size_t>(r)] = rest[r].data();
    }
    detail::best_tiles_24(rows, codes);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t code = codes[static_cast<std::size_t>(i)];
      const std::int64_t col = (tile + i) * kTile;
      if (mask.col_stride == 1 && first + kTile <= mask.rows && col + kTile <= mask.cols) {
        std::byte* const corner =
            mask.data + batch * mask.batch_stride + first * mask.row_stride + col;
        write_whole_24(corner, mask.row_stride, code);
        continue;
      }
      const std::array<std::int32_t, kTile> bits{code, code >> 4, code >> 8, code >> 12};
      detail::write_tile(mask, batch, first, col, kTile, bits.data());
    }
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
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t batch = p / panels;
      const std::int64_t first = p % panels * m;
      panel.read(batch, first);
      if (panel.bad_row() >= 0) {
        bad = batch * scores.rows + first + panel.bad_row();
        return;
      }
      if (n == 2 && m == 4) {
        mask_panel_24(panel, mask, batch, first);
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
