// SPDX-License-Identifier: BSD-3-Clause
#include "cli/calibrated.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cli/linear_algebra.h"
#include "core/half.h"
#include "gossamer/error.h"
#include "gossamer/solve.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

using Mask = std::vector<std::uint8_t>;

/// The weight as a matrix, cut into the parts of a grouped convolution.
struct Problem {
  std::span<const float> dense;
  const LayerStatistics& statistics;
  const PrunePattern& pattern;
  Scope scope;
  std::int64_t rows = 0;  ///< of one part

  std::int64_t size() const { return rows * statistics.inputs; }
  std::span<const double> gram(std::int64_t group) const {
    const std::int64_t count = statistics.inputs * statistics.inputs;
    return {statistics.gram.data() + group * count, static_cast<std::size_t>(count)};
  }
};

Problem problem_of(std::span<const float> dense, const LayerStatistics& statistics,
                   const PrunePattern& pattern, Scope scope) {
  const auto rows = static_cast<std::int64_t>(dense.size()) / statistics.inputs;
  return {dense, statistics, pattern, scope, rows / statistics.groups};
}

/// The pattern's mask of scores. Groups of inputs start anew with every segment: each is a matrix.
template <typename T>
Mask select(const Problem& problem, const std::vector<T>& scores) {
  constexpr DType kType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  const LayerStatistics& s = problem.statistics;
  Mask mask(scores.size());
  std::vector<Selection> parts;
  const auto view = [&](auto* data, DType dtype, std::int64_t group) {
    auto whole = contiguous_view(data, dtype, problem.rows, s.inputs, s.groups);
    if (!problem.pattern.groups_inputs()) return whole;
    const std::int64_t width = dtype == DType::kBool ? 1 : static_cast<std::int64_t>(sizeof(T));
    whole.data += group * problem.size() * width;
    whole.cols = s.segment;
    whole.batch = s.inputs / s.segment;
    whole.batch_stride = s.segment;
    return whole;
  };
  for (std::int64_t group = 0; group < (problem.pattern.groups_inputs() ? s.groups : 1); ++group) {
    parts.push_back({view(static_cast<const void*>(scores.data()), kType, group),
                     view(static_cast<void*>(mask.data()), DType::kBool, group)});
  }
  for (const Selection& part : parts) problem.pattern.select(part.scores, problem.scope, part.mask);
  return mask;
}

Mask wanda(const Problem& problem) {
  const LayerStatistics& s = problem.statistics;
  std::vector<float> scores(problem.dense.size());
  for (std::int64_t i = 0; i < std::ssize(scores); ++i) {
    const std::int64_t at = i / problem.size() * s.inputs + i % s.inputs;
    scores[static_cast<std::size_t>(i)] = std::fabs(problem.dense[static_cast<std::size_t>(i)]) *
                                          static_cast<float>(s.norms[static_cast<std::size_t>(at)]);
  }
  return select(problem, scores);
}

/// (|w| / Σ_column |w| + |w| / Σ_row |w|)·‖x_j‖^power, for each part of a grouped convolution.
Mask ria(const Problem& problem, double power) {
  const LayerStatistics& s = problem.statistics;
  const auto inputs = static_cast<std::size_t>(s.inputs);
  constexpr double kSmallest = std::numeric_limits<double>::min();
  std::vector<double> scores(problem.dense.size());
  for (std::int64_t group = 0; group < s.groups; ++group) {
    const auto part = problem.dense.subspan(static_cast<std::size_t>(group * problem.size()),
                                            static_cast<std::size_t>(problem.size()));
    std::vector<double> rows(static_cast<std::size_t>(problem.rows));
    std::vector<double> cols(inputs);
    for (std::size_t i = 0; i < part.size(); ++i) {
      const double size = std::fabs(static_cast<double>(part[i]));
      rows[i / inputs] += size;
      cols[i % inputs] += size;
    }
    for (std::size_t i = 0; i < part.size(); ++i) {
      const double size = std::fabs(static_cast<double>(part[i]));
      const double shares = size / std::max(rows[i / inputs], kSmallest) +
                            size / std::max(cols[i % inputs], kSmallest);
      const double norm = s.norms[static_cast<std::size_t>(group) * inputs + i % inputs];
      scores[static_cast<std::size_t>(group * problem.size()) + i] = shares * std::pow(norm, power);
    }
  }
  return select(problem, scores);
}

/// w² / [H⁻¹]_jj of every weight, for patterns that the sweep itself cannot select.
Mask by_saliency(const Problem& problem, const std::vector<std::vector<float>>& factors) {
  const std::int64_t inputs = problem.statistics.inputs;
  std::vector<float> scores(problem.dense.size());
  for (std::int64_t i = 0; i < std::ssize(scores); ++i) {
    const auto& factor = factors[static_cast<std::size_t>(i / problem.size())];
    double diagonal = 0.0;
    for (std::int64_t k = 0; k <= i % inputs; ++k) {
      const double u = factor[static_cast<std::size_t>(k * inputs + i % inputs)];
      diagonal += u * u;
    }
    const double w = problem.dense[static_cast<std::size_t>(i)];
    scores[static_cast<std::size_t>(i)] = static_cast<float>(w * w / diagonal);
  }
  return select(problem, scores);
}

/// What the sweep selects by itself, in the way of the scope; nothing for other patterns.
std::optional<Pattern> swept_pattern(const PrunePattern& asked, Scope scope) {
  const Pattern& pattern = asked.pattern;
  if (asked.transposable) return {};
  if (pattern.kind == Pattern::Kind::kBlock || pattern.kind == Pattern::Kind::kVnm) return {};
  if (pattern.kind == Pattern::Kind::kUnstructured && scope == Scope::kRow) {
    return Pattern::fan_in(pattern.sparsity);
  }
  return pattern;
}

struct Swept {
  std::vector<float> weight;
  Mask mask;
  double damping = 0.0;
};

Swept sparse_gpt(const Problem& problem, const std::string& name,
                 const CalibratedOptions& options) {
  const LayerStatistics& s = problem.statistics;
  Swept swept{
      {problem.dense.begin(), problem.dense.end()}, Mask(problem.dense.size()), options.damping};
  std::vector<std::vector<float>> factors;
  for (std::int64_t group = 0; group < s.groups; ++group) {
    factors.push_back(inverse_factor(problem.gram(group), s.inputs, swept.damping, name));
  }
  ObsOptions sweep;
  sweep.pattern = swept_pattern(problem.pattern, problem.scope);
  sweep.block = options.block;
  sweep.segment = s.segment;
  if (!sweep.pattern) swept.mask = by_saliency(problem, factors);
  for (std::int64_t group = 0; group < s.groups; ++group) {
    const std::int64_t at = group * problem.size();
    const auto& factor = factors[static_cast<std::size_t>(group)];
    obs_sweep(contiguous_view(static_cast<void*>(swept.weight.data() + at), DType::kFloat32,
                              problem.rows, s.inputs),
              contiguous_view(static_cast<const void*>(factor.data()), DType::kFloat32, s.inputs,
                              s.inputs),
              contiguous_view(static_cast<void*>(swept.mask.data() + at), DType::kBool,
                              problem.rows, s.inputs),
              sweep, machine_solver());
  }
  return swept;
}

double quotient(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

double energy_of(const Problem& problem, std::span<const float> rows) {
  double sum = 0.0;
  for (std::int64_t group = 0; group < problem.statistics.groups; ++group) {
    sum += energy(rows.subspan(static_cast<std::size_t>(group * problem.size()),
                               static_cast<std::size_t>(problem.size())),
                  problem.gram(group), problem.statistics.inputs);
  }
  return sum;
}

/// Elements of the matrix into memory that has the file's dtype and order.
template <typename Store>
std::vector<std::byte> to_file_order(const LoadedWeight& weight, DType dtype, const Store& store) {
  std::vector<std::byte> elements(static_cast<std::size_t>(weight.elements() * dtype_bytes(dtype)));
  const MatrixView view = weight.view_of(elements.data(), dtype);
  for (std::int64_t r = 0; r < view.rows; ++r) {
    for (std::int64_t c = 0; c < view.cols; ++c) {
      store(elements.data(), r * view.row_stride + c * view.col_stride, r * view.cols + c);
    }
  }
  return weight.in_file_order(std::move(elements));
}

}  // namespace

void CalibratedOptions::add_to(CLI::App& command) {
  command
      .add_option("--method", method,
                  "magnitude (needs no data), wanda, ria or sparsegpt (corrects what is kept)")
      ->check(CLI::IsMember({"magnitude", "wanda", "ria", "sparsegpt"}))
      ->capture_default_str();
  command
      .add_option("--stats", statistics,
                  "Statistics of the layers' inputs (gossamer.prune.save_statistics); weights "
                  "without any are left")
      ->type_name("FILE");
  command
      .add_option("--damping", damping,
                  "sparsegpt: added to the Gram matrix's diagonal, as a "
                  "fraction of its mean")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--block", block, "sparsegpt: columns that are selected together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--power", power, "ria: how much the norms of inputs count")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void CalibratedOptions::check() const {
  if (asked() && statistics.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--method {} needs --stats FILE; gossamer.prune.save_statistics(model, "
                            "batches, path) writes it",
                            method));
  }
  if (!asked() && !statistics.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "--stats says nothing to --method magnitude; choose wanda, ria or sparsegpt");
  }
}

std::vector<float> dense_matrix(const LoadedWeight& weight, const std::string& name,
                                const LayerStatistics& statistics) {
  const ConstMatrixView& view = weight.view();
  if (view.cols != statistics.inputs || view.rows % statistics.groups != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("weight {} is a matrix [{}, {}], its statistics are of {} inputs in {} "
                            "groups; take them of this model{}",
                            io::shown_name(name), view.rows, view.cols, statistics.inputs,
                            statistics.groups,
                            view.rows == statistics.inputs ? ", or say --transposed" : ""));
  }
  std::vector<float> dense(static_cast<std::size_t>(view.rows * view.cols));
  for (std::int64_t r = 0; r < view.rows; ++r) {
    detail::load_row(view.dtype, view.data + r * view.row_stride * dtype_bytes(view.dtype),
                     view.cols, view.col_stride, dense.data() + r * view.cols);
  }
  for (std::size_t i = 0; i < dense.size(); ++i) {
    if (std::isfinite(dense[i])) continue;
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("weight {} holds NaN or infinity at row {}, column {}",
                            io::shown_name(name), static_cast<std::int64_t>(i) / view.cols,
                            static_cast<std::int64_t>(i) % view.cols));
  }
  return dense;
}

Mask wanda_mask(std::span<const float> dense, const LayerStatistics& statistics,
                const PrunePattern& pattern, Scope scope) {
  return wanda(problem_of(dense, statistics, pattern, scope));
}

double masked_error(std::span<const float> dense, std::span<const std::uint8_t> mask,
                    const LayerStatistics& statistics) {
  const PrunePattern none = Pattern::unstructured(0.0);
  const Problem problem = problem_of(dense, statistics, none, Scope::kTensor);
  std::vector<float> dropped(dense.size());
  for (std::size_t i = 0; i < dense.size(); ++i) dropped[i] = mask[i] != 0 ? 0.0f : dense[i];
  if (!statistics.gram.empty()) {
    return quotient(energy_of(problem, dropped), energy_of(problem, dense));
  }
  double part = 0.0;
  double whole = 0.0;
  for (std::int64_t i = 0; i < std::ssize(dropped); ++i) {
    const std::int64_t at = i / problem.size() * statistics.inputs + i % statistics.inputs;
    const double norm = statistics.norms[static_cast<std::size_t>(at)];
    const double gone = dropped[static_cast<std::size_t>(i)] * norm;
    const double all = dense[static_cast<std::size_t>(i)] * norm;
    part += gone * gone;
    whole += all * all;
  }
  return quotient(part, whole);
}

PrunedWeight prune_calibrated(const LoadedWeight& weight, const std::string& name,
                              const LayerStatistics& statistics, const PrunePattern& pattern,
                              Scope scope, const CalibratedOptions& options) {
  const std::vector<float> dense = dense_matrix(weight, name, statistics);
  const Problem problem = problem_of(dense, statistics, pattern, scope);
  PrunedWeight pruned;
  Mask mask;
  if (options.method == "sparsegpt") {
    if (statistics.gram.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("weight {}: sparsegpt needs the Gram matrix, the statistics have its "
                              "norms alone; write them with kind=\"gram\"",
                              io::shown_name(name)));
    }
    Swept swept = sparse_gpt(problem, name, options);
    std::vector<float> change(dense.size());
    std::ranges::transform(swept.weight, dense, change.begin(), std::minus<>());
    pruned.error = quotient(energy_of(problem, change), energy_of(problem, dense));
    pruned.damping = swept.damping;
    if (statistics.tokens < statistics.inputs) {
      pruned.remark = fmt::format("fitted to {} tokens, fewer than its {} inputs",
                                  statistics.tokens, statistics.inputs);
    }
    pruned.values = to_file_order(weight, weight.view().dtype,
                                  [&](std::byte* to, std::int64_t at, std::int64_t from) {
                                    detail::store_as(weight.view().dtype, to, at,
                                                     swept.weight[static_cast<std::size_t>(from)]);
                                  });
    mask = std::move(swept.mask);
  } else {
    mask = options.method == "ria" ? ria(problem, options.power) : wanda(problem);
    if (!statistics.gram.empty()) pruned.error = masked_error(dense, mask, statistics);
  }
  pruned.mask =
      to_file_order(weight, DType::kBool, [&](std::byte* to, std::int64_t at, std::int64_t from) {
        to[at] = std::byte{mask[static_cast<std::size_t>(from)]};
      });
  return pruned;
}

}  // namespace gossamer::cli
