// SPDX-License-Identifier: BSD-3-Clause
#include "cli/global_threshold.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cli/interrupt.h"
#include "cli/output.h"
#include "core/half.h"
#include "core/top_k.h"
#include "gossamer/error.h"
#include "gossamer/mask.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

// Calls f(batch, row, columns as doubles) over a weight in row-major order.
template <typename F>
void for_each_row(const ConstMatrixView& view, const F& f) {
  std::vector<double> row(static_cast<std::size_t>(view.cols));
  const std::int64_t width = dtype_bytes(view.dtype);
  for (std::int64_t b = 0; b < view.batch; ++b) {
    for (std::int64_t r = 0; r < view.rows; ++r) {
      const std::byte* data = view.data + (b * view.batch_stride + r * view.row_stride) * width;
      detail::load_row(view.dtype, data, view.cols, view.col_stride, row.data());
      f(b, r, std::span<const double>(row));
    }
  }
}

[[noreturn]] void refuse_nan(const SafetensorsEntry& entry, std::int64_t row, std::size_t col) {
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format("weight '{}' row {}, column {}: NaN has no magnitude; repair the checkpoint "
                  "or leave the tensor out (--exclude)",
                  io::escaped(entry.name), row, col));
}

// The magnitudes of all competitors, read from the file as often as they are asked for.
class Magnitudes : public detail::KeySource {
 public:
  Magnitudes(const SafetensorsFile& file, std::span<const Competitor> competitors,
             const Pattern& pattern)
      : file_(file), competitors_(competitors), pattern_(pattern) {}

  std::int64_t count() const override {
    std::int64_t elements = 0;
    for (const Competitor& one : competitors_) elements += element_count(one.entry->shape);
    return elements;
  }

  void visit(const Visitor& visitor) const override {
    std::vector<double> magnitudes;
    for (const Competitor& one : competitors_) {
      check_interrupt();
      const LoadedWeight weight(file_, *one.entry, one.transposed, &pattern_);
      for_each_row(weight.view(), [&](std::int64_t, std::int64_t r, std::span<const double> row) {
        magnitudes.resize(row.size());
        for (std::size_t c = 0; c < row.size(); ++c) {
          if (std::isnan(row[c])) refuse_nan(*one.entry, r, c);
          magnitudes[c] = std::fabs(row[c]);
        }
        visitor(magnitudes);
      });
    }
  }

 private:
  const SafetensorsFile& file_;
  std::span<const Competitor> competitors_;
  Pattern pattern_;
};

class ElementSelector : public GlobalSelector {
 public:
  ElementSelector(const SafetensorsFile& file, std::span<const Competitor> competitors,
                  const Pattern& pattern) {
    const Magnitudes magnitudes(file, competitors, pattern);
    const std::int64_t count = magnitudes.count();
    threshold_ = detail::top_k(magnitudes, count - dropped_count(pattern.sparsity, count));
  }

  void next_mask(const ConstMatrixView& values, const MatrixView& mask) override {
    for_each_row(values, [&](std::int64_t b, std::int64_t r, std::span<const double> row) {
      std::byte* kept = mask.data + b * mask.batch_stride + r * mask.row_stride;
      for (const double value : row) {
        *kept = threshold_.keeps(std::fabs(value)) ? std::byte{1} : std::byte{0};
        kept += mask.col_stride;
      }
    });
  }

 private:
  detail::Threshold threshold_;
};

// Blocks compete by their mean magnitude: an unstructured selection among blocks.
class BlockSelector : public GlobalSelector {
 public:
  BlockSelector(const SafetensorsFile& file, std::span<const Competitor> competitors,
                const Pattern& pattern)
      : pattern_(pattern) {
    for (const Competitor& one : competitors) {
      check_interrupt();
      const LoadedWeight weight(file, *one.entry, one.transposed, &pattern_);
      grids_.push_back(score(weight.view(), *one.entry));
    }
    std::vector<Selection> selections;
    for (Grid& g : grids_) {
      const void* scores = g.scores.data();
      void* kept = g.kept.data();
      selections.push_back({contiguous_view(scores, DType::kFloat64, g.rows, g.cols, g.batch),
                            contiguous_view(kept, DType::kBool, g.rows, g.cols, g.batch)});
    }
    select_masks(selections, Pattern::unstructured(pattern.sparsity), Scope::kGlobal);
  }

  void next_mask(const ConstMatrixView& values, const MatrixView& mask) override {
    const Grid& grid = grids_[next_++];
    for (std::int64_t b = 0; b < values.batch; ++b) {
      for (std::int64_t r = 0; r < values.rows; ++r) {
        std::byte* kept = mask.data + b * mask.batch_stride + r * mask.row_stride;
        for (std::int64_t c = 0; c < values.cols; ++c) {
          kept[c * mask.col_stride] = grid.kept[index(grid, b, r, c)];
        }
      }
    }
  }

 private:
  struct Grid {
    std::int64_t batch = 1;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::vector<double> scores = {};
    std::vector<std::byte> kept = {};
  };

  std::size_t index(const Grid& grid, std::int64_t b, std::int64_t r, std::int64_t c) const {
    return static_cast<std::size_t>((b * grid.rows + r / pattern_.block_rows) * grid.cols +
                                    c / pattern_.block_cols);
  }

  Grid score(const ConstMatrixView& view, const SafetensorsEntry& entry) const {
    Grid grid{.batch = view.batch,
              .rows = (view.rows + pattern_.block_rows - 1) / pattern_.block_rows,
              .cols = (view.cols + pattern_.block_cols - 1) / pattern_.block_cols};
    const auto blocks = static_cast<std::size_t>(grid.batch * grid.rows * grid.cols);
    grid.scores.resize(blocks);
    grid.kept.resize(blocks);
    for_each_row(view, [&](std::int64_t b, std::int64_t r, std::span<const double> row) {
      for (std::size_t c = 0; c < row.size(); ++c) {
        if (std::isnan(row[c])) refuse_nan(entry, r, c);
        grid.scores[index(grid, b, r, static_cast<std::int64_t>(c))] += std::abs(row[c]);
      }
    });
    for (std::int64_t b = 0; b < grid.batch; ++b) {
      for (std::int64_t r = 0; r < view.rows; r += pattern_.block_rows) {
        for (std::int64_t c = 0; c < view.cols; c += pattern_.block_cols) {
          // Blocks at the edges are cut off by the matrix.
          const auto high = std::min<std::int64_t>(pattern_.block_rows, view.rows - r);
          const auto wide = std::min<std::int64_t>(pattern_.block_cols, view.cols - c);
          grid.scores[index(grid, b, r, c)] /= static_cast<double>(high * wide);
        }
      }
    }
    return grid;
  }

  Pattern pattern_;
  std::vector<Grid> grids_;
  std::size_t next_ = 0;
};

}  // namespace

std::unique_ptr<GlobalSelector> make_global_selector(const SafetensorsFile& file,
                                                     std::span<const Competitor> competitors,
                                                     const Pattern& pattern) {
  switch (pattern.kind) {
    case Pattern::Kind::kUnstructured:
      return std::make_unique<ElementSelector>(file, competitors, pattern);
    case Pattern::Kind::kBlock:
      return std::make_unique<BlockSelector>(file, competitors, pattern);
    default:
      return nullptr;  // these compete where their definition says, whatever the scope
  }
}

}  // namespace gossamer::cli
