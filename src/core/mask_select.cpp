// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "core/fail.h"
#include "core/half.h"
#include "core/layouts.h"
#include "core/pattern_check.h"
#include "core/row_source.h"
#include "core/top_k.h"
#include "gossamer/mask.h"

namespace gossamer {
namespace {

using detail::ceil_div;
using detail::fail;
using detail::Threshold;

/// Scores of one weight, read row by row: a view's elements or their magnitudes.
struct ScoreView {
  ConstMatrixView view;
  bool magnitude = false;

  std::int64_t rows() const { return view.batch * view.rows; }

  /// Row `row` counted over all batches.
  void read(std::int64_t row, double* to) const {
    const std::int64_t at = row / view.rows * view.batch_stride + row % view.rows * view.row_stride;
    detail::load_row(view.dtype, view.data + at * dtype_bytes(view.dtype), view.cols,
                     view.col_stride, to);
    if (!magnitude) return;
    for (std::int64_t i = 0; i < view.cols; ++i) to[i] = std::fabs(to[i]);
  }
};

/// A weight to select from.
struct Task {
  ScoreView scores;
  MatrixView mask;
};

std::uint8_t* mask_row(const MatrixView& mask, std::int64_t row) {
  std::byte* at =
      mask.data + row / mask.rows * mask.batch_stride + row % mask.rows * mask.row_stride;
  return reinterpret_cast<std::uint8_t*>(at);
}

void check_task(const Task& task, std::size_t index) {
  const ConstMatrixView& s = task.scores.view;
  const MatrixView& m = task.mask;
  const std::string what = fmt::format("selection {}", index);
  detail::check_view(s, what + ", scores");
  detail::check_view(read_only(m), what + ", mask");
  if (m.dtype != DType::kBool) {
    fail(ErrorCode::kInvalidArgument, "{}: the mask's dtype is {}, expected bool", what,
         dtype_name(m.dtype));
  }
  if (m.batch != s.batch || m.rows != s.rows || m.cols != s.cols) {
    fail(ErrorCode::kInvalidArgument,
         "{}: the mask's shape is [{}, {}, {}], that of the scores [{}, {}, {}]", what, m.batch,
         m.rows, m.cols, s.batch, s.rows, s.cols);
  }
  std::vector<double> row(static_cast<std::size_t>(s.cols));
  for (std::int64_t r = 0; s.cols > 0 && r < task.scores.rows(); ++r) {
    task.scores.read(r, row.data());
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (!std::isnan(row[i])) continue;
      fail(ErrorCode::kInvalidArgument,
           "{}: the score at batch {}, row {}, column {} is NaN; scores must be numbers", what,
           r / s.rows, r % s.rows, i);
    }
  }
}

// ---- Things that compete by rows, by tensor or over all tensors: elements or blocks. ----

/// A matrix of competing scores, given row by row, and where verdicts go.
class Field {
 public:
  virtual ~Field() = default;
  virtual std::int64_t rows() const = 0;
  virtual std::int64_t cols() const = 0;
  virtual void read(std::int64_t row, double* to) const = 0;
  virtual void write(std::int64_t row, const std::uint8_t* kept) = 0;
};

class ElementField final : public Field {
 public:
  explicit ElementField(const Task& task) : task_(task) {}
  std::int64_t rows() const override { return task_.scores.rows(); }
  std::int64_t cols() const override { return task_.scores.view.cols; }
  void read(std::int64_t row, double* to) const override { task_.scores.read(row, to); }
  void write(std::int64_t row, const std::uint8_t* kept) override {
    std::uint8_t* to = mask_row(task_.mask, row);
    for (std::int64_t i = 0; i < cols(); ++i) to[i * task_.mask.col_stride] = kept[i];
  }

 private:
  Task task_;
};

/// Blocks of a weight; a block's score is the mean of the elements that it has inside the matrix.
class BlockField final : public Field {
 public:
  BlockField(const Task& task, const Pattern& pattern)
      : task_(task),
        height_(pattern.block_rows),
        width_(pattern.block_cols),
        rows_a_batch_(ceil_div(task.mask.rows, height_)),
        cols_(ceil_div(task.mask.cols, width_)),
        means_(static_cast<std::size_t>(rows() * cols_), 0.0) {
    std::vector<double> row(static_cast<std::size_t>(task.mask.cols));
    for (std::int64_t r = 0; r < task.scores.rows(); ++r) {
      task.scores.read(r, row.data());
      double* sums = block_row(r);
      for (std::size_t i = 0; i < row.size(); ++i) {
        sums[static_cast<std::int64_t>(i) / width_] += row[i];
      }
    }
    divide();
  }

  std::int64_t rows() const override { return task_.mask.batch * rows_a_batch_; }
  std::int64_t cols() const override { return cols_; }
  void read(std::int64_t row, double* to) const override {
    std::copy_n(means_.begin() + row * cols_, cols_, to);
  }
  void write(std::int64_t row, const std::uint8_t* kept) override {
    const std::int64_t first = row % rows_a_batch_ * height_;
    const std::int64_t batch = row / rows_a_batch_;
    for (std::int64_t r = first; r < std::min(first + height_, task_.mask.rows); ++r) {
      std::uint8_t* to = mask_row(task_.mask, batch * task_.mask.rows + r);
      for (std::int64_t i = 0; i < task_.mask.cols; ++i) {
        to[i * task_.mask.col_stride] = kept[i / width_];
      }
    }
  }

 private:
  double* block_row(std::int64_t row) {
    const std::int64_t at = row / task_.mask.rows * rows_a_batch_ + row % task_.mask.rows / height_;
    return means_.data() + at * cols_;
  }

  void divide() {
    for (std::int64_t r = 0; r < rows(); ++r) {
      const std::int64_t height = std::min(height_, task_.mask.rows - r % rows_a_batch_ * height_);
      for (std::int64_t c = 0; c < cols_; ++c) {
        double& mean = means_[static_cast<std::size_t>(r * cols_ + c)];
        mean /= static_cast<double>(height * std::min(width_, task_.mask.cols - c * width_));
        if (!std::isnan(mean)) continue;
        fail(ErrorCode::kInvalidArgument,
             "the block at block row {}, block column {} has both infinite and minus infinite "
             "scores: its mean is NaN",
             r, c);
      }
    }
  }

  Task task_;
  std::int64_t height_;
  std::int64_t width_;
  std::int64_t rows_a_batch_;
  std::int64_t cols_;
  std::vector<double> means_;
};

using Fields = std::vector<std::unique_ptr<Field>>;

/// Rows [begin, end) of some fields, as the keys of one competition.
class FieldKeys final : public detail::KeySource {
 public:
  FieldKeys(std::span<const std::unique_ptr<Field>> fields, std::optional<std::int64_t> only_row)
      : fields_(fields), only_row_(only_row) {}

  std::int64_t count() const override {
    std::int64_t total = 0;
    for (const auto& field : fields_) total += (only_row_ ? 1 : field->rows()) * field->cols();
    return total;
  }

  void visit(const Visitor& visitor) const override {
    for (const auto& field : fields_) {
      const std::int64_t begin = only_row_.value_or(0);
      const std::int64_t end = only_row_ ? begin + 1 : field->rows();
      row_.resize(static_cast<std::size_t>(field->cols()));
      for (std::int64_t r = begin; r < end && field->cols() > 0; ++r) {
        field->read(r, row_.data());
        visitor(row_);
      }
    }
  }

  /// Keeps what the threshold says, in order.
  void apply(Threshold threshold) const {
    std::vector<std::uint8_t> kept;
    for (const auto& field : fields_) {
      const std::int64_t begin = only_row_.value_or(0);
      const std::int64_t end = only_row_ ? begin + 1 : field->rows();
      row_.resize(static_cast<std::size_t>(field->cols()));
      kept.resize(row_.size());
      for (std::int64_t r = begin; r < end && field->cols() > 0; ++r) {
        field->read(r, row_.data());
        for (std::size_t i = 0; i < row_.size(); ++i) kept[i] = threshold.keeps(row_[i]) ? 1 : 0;
        field->write(r, kept.data());
      }
    }
  }

 private:
  std::span<const std::unique_ptr<Field>> fields_;
  std::optional<std::int64_t> only_row_;
  mutable std::vector<double> row_;
};

void select_among(const FieldKeys& keys, double sparsity) {
  const std::int64_t count = keys.count();
  keys.apply(detail::top_k(keys, count - dropped_count(sparsity, count)));
}

void select_fields(const Fields& fields, double sparsity, Scope scope) {
  if (scope == Scope::kGlobal) return select_among(FieldKeys(fields, std::nullopt), sparsity);
  for (std::size_t f = 0; f < fields.size(); ++f) {
    const std::span<const std::unique_ptr<Field>> one(&fields[f], 1);
    if (scope == Scope::kTensor) {
      select_among(FieldKeys(one, std::nullopt), sparsity);
      continue;
    }
    for (std::int64_t r = 0; r < fields[f]->rows(); ++r) select_among(FieldKeys(one, r), sparsity);
  }
}

// ---- Patterns that compete inside groups of columns. ----

/// Sets kept[i] for the `n` highest of `count` scores among those where `live` is set (null: all).
void keep_highest(const double* scores, const std::uint8_t* live, std::int64_t count,
                  std::int64_t n, std::uint8_t* kept) {
  std::fill_n(kept, count, std::uint8_t{0});
  for (std::int64_t done = 0; done < n; ++done) {
    std::int64_t best = -1;
    for (std::int64_t i = 0; i < count; ++i) {
      if (kept[i] != 0 || (live != nullptr && live[i] == 0)) continue;
      if (best < 0 || scores[i] > scores[best]) best = i;
    }
    if (best < 0) return;
    kept[best] = 1;
  }
}

/// Per row and group of M columns, N of those that `live` allows (empty: all).
void select_groups(const Task& task, std::int64_t first_row, std::int64_t end_row, std::int64_t n,
                   std::int64_t m, const std::vector<std::uint8_t>& live) {
  const std::int64_t cols = task.mask.cols;
  std::vector<double> scores(static_cast<std::size_t>(cols));
  std::vector<std::uint8_t> kept(static_cast<std::size_t>(cols));
  for (std::int64_t r = first_row; r < end_row && cols > 0; ++r) {
    task.scores.read(r, scores.data());
    for (std::int64_t begin = 0; begin < cols; begin += m) {
      keep_highest(scores.data() + begin, live.empty() ? nullptr : live.data() + begin,
                   std::min(m, cols - begin), n, kept.data() + begin);
    }
    std::uint8_t* to = mask_row(task.mask, r);
    for (std::int64_t i = 0; i < cols; ++i) {
      to[i * task.mask.col_stride] = kept[static_cast<std::size_t>(i)];
    }
  }
}

/// Panels of V rows: the four columns of a group with the highest sums are live, then N:4 in each
/// row.
void select_vnm(const Task& task, const Pattern& pattern) {
  const std::int64_t cols = task.mask.cols;
  std::vector<double> sums(static_cast<std::size_t>(cols));
  std::vector<double> row(static_cast<std::size_t>(cols));
  std::vector<std::uint8_t> live(static_cast<std::size_t>(cols));
  for (std::int64_t b = 0; b < task.mask.batch && cols > 0; ++b) {
    for (std::int64_t first = 0; first < task.mask.rows; first += pattern.v) {
      const std::int64_t begin = b * task.mask.rows + first;
      const std::int64_t end = begin + std::min<std::int64_t>(pattern.v, task.mask.rows - first);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (std::int64_t r = begin; r < end; ++r) {
        task.scores.read(r, row.data());
        for (std::size_t i = 0; i < row.size(); ++i) sums[i] += row[i];
      }
      for (std::int64_t group = 0; group < cols; group += pattern.m) {
        keep_highest(sums.data() + group, nullptr, std::min<std::int64_t>(pattern.m, cols - group),
                     detail::kVnmLiveColumns, live.data() + group);
      }
      select_groups(task, begin, end, pattern.n, pattern.m, live);
    }
  }
}

void select(const std::vector<Task>& tasks, const Pattern& pattern, Scope scope) {
  const std::string fault = detail::pattern_fault(pattern);
  if (!fault.empty()) fail(ErrorCode::kInvalidArgument, "pattern: {}", fault);
  for (std::size_t i = 0; i < tasks.size(); ++i) check_task(tasks[i], i);
  if (pattern.kind == Pattern::Kind::kNm) {
    for (const Task& t : tasks) select_groups(t, 0, t.scores.rows(), pattern.n, pattern.m, {});
    return;
  }
  if (pattern.kind == Pattern::Kind::kVnm) {
    for (const Task& t : tasks) select_vnm(t, pattern);
    return;
  }
  Fields fields;
  for (const Task& task : tasks) {
    if (pattern.kind == Pattern::Kind::kBlock) {
      fields.push_back(std::make_unique<BlockField>(task, pattern));
    } else {
      fields.push_back(std::make_unique<ElementField>(task));
    }
  }
  select_fields(fields, pattern.sparsity,
                pattern.kind == Pattern::Kind::kFanIn ? Scope::kRow : scope);
}

}  // namespace

Scope parse_scope(std::string_view text) {
  if (text == "row") return Scope::kRow;
  if (text == "tensor") return Scope::kTensor;
  if (text == "global") return Scope::kGlobal;
  fail(ErrorCode::kInvalidArgument, "scope '{}'; expected row, tensor or global", text);
}

void select_masks(std::span<const Selection> selections, const Pattern& pattern, Scope scope) {
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < selections.size(); ++i) {
    const DType dtype = selections[i].scores.dtype;
    if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
      fail(ErrorCode::kInvalidArgument,
           "selection {}: scores of dtype {}, expected float32 or float64", i, dtype_name(dtype));
    }
    tasks.push_back({{selections[i].scores, false}, selections[i].mask});
  }
  select(tasks, pattern, scope);
}

void magnitude_mask(const ConstMatrixView& values, const Pattern& pattern, Scope scope,
                    const MatrixView& mask) {
  if (!is_weight_dtype(values.dtype)) {
    fail(ErrorCode::kInvalidArgument, "values of dtype {}, expected a float type or int8",
         dtype_name(values.dtype));
  }
  select({{{values, true}, mask}}, pattern, scope);
}

}  // namespace gossamer
