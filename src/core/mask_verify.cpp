// SPDX-License-Identifier: BSD-3-Clause
#include "core/mask_verify.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/compress.h"
#include "core/fail.h"
#include "core/layouts.h"
#include "core/pattern_check.h"

namespace gossamer {
namespace detail {
namespace {

using MaskRow = std::vector<std::uint8_t>;

/// "row 17, columns 40–43: …" with the batch in front where there is more than one.
Violation violation(const RowSource& source, std::int64_t batch, std::int64_t row,
                    std::int64_t col_begin, std::int64_t col_end, std::string_view what) {
  const std::string where = source.batch() > 1 ? fmt::format("batch {}, ", batch) : std::string();
  const std::string cols = col_end - col_begin == 1
                               ? fmt::format("column {}", col_begin)
                               : fmt::format("columns {}–{}", col_begin, col_end - 1);
  return {batch, row, col_begin, col_end, fmt::format("{}row {}, {}: {}", where, row, cols, what)};
}

/// Calls `visit(batch, row, mask)` for every row until it returns a violation.
template <typename F>
std::optional<Violation> visit_rows(const RowSource& source, const F& visit) {
  MaskRow mask(static_cast<std::size_t>(source.in()));
  for (std::int64_t b = 0; b < source.batch(); ++b) {
    for (std::int64_t r = 0; r < source.out(); ++r) {
      source.read_mask(b, r, mask.data());
      if (std::optional<Violation> found = visit(b, r, mask)) return found;
    }
  }
  return std::nullopt;
}

std::int64_t count(const MaskRow& mask, std::int64_t begin, std::int64_t end) {
  return std::accumulate(mask.begin() + begin, mask.begin() + end, std::int64_t{0});
}

/// How many of rows × cols things a fraction of zeros lets stay. Dropping row by row and dropping
/// over the whole round differently; both are what was asked.
std::int64_t allowed_count(double sparsity, std::int64_t rows, std::int64_t cols) {
  return std::max(rows * cols - dropped_count(sparsity, rows * cols),
                  rows * (cols - dropped_count(sparsity, cols)));
}

std::optional<Violation> check_unstructured(const RowSource& source, const Pattern& pattern) {
  const std::int64_t rows = source.batch() * source.out();
  const std::int64_t allowed = most_kept(pattern, rows, source.in());
  if (allowed >= rows * source.in()) return std::nullopt;
  const std::int64_t total = count_kept(source);
  if (total <= allowed) return std::nullopt;
  std::int64_t seen = 0;
  return visit_rows(source, [&](std::int64_t b, std::int64_t r, const MaskRow& mask) {
    std::optional<Violation> found;
    const std::int64_t here = count(mask, 0, source.in());
    if (seen + here <= allowed) {
      seen += here;
      return found;
    }
    for_each_kept(mask.data(), source.in(), [&](std::int64_t i) {
      if (seen++ != allowed) return;
      found = violation(
          source, b, r, i, i + 1,
          fmt::format("non-zero number {} of {}, {} allows {} of {} positions", allowed + 1, total,
                      pattern.to_string(), allowed, rows * source.in()));
    });
    return found;
  });
}

std::optional<Violation> check_nm(const RowSource& source, const Pattern& pattern) {
  return visit_rows(
      source, [&](std::int64_t b, std::int64_t r, const MaskRow& mask) -> std::optional<Violation> {
        for (std::int64_t begin = 0; begin < source.in(); begin += pattern.m) {
          const std::int64_t end = std::min<std::int64_t>(begin + pattern.m, source.in());
          const std::int64_t kept = count(mask, begin, end);
          if (kept <= pattern.n) continue;
          return violation(
              source, b, r, begin, end,
              fmt::format("{} non-zeros, {} allows {}", kept, pattern.to_string(), pattern.n));
        }
        return std::nullopt;
      });
}

std::optional<Violation> check_block(const RowSource& source, const Pattern& pattern) {
  const std::int64_t height = pattern.block_rows;
  const std::int64_t width = pattern.block_cols;
  const std::int64_t block_rows = source.batch() * ceil_div(source.out(), height);
  const std::int64_t block_cols = ceil_div(source.in(), width);
  const std::int64_t allowed = allowed_count(pattern.sparsity, block_rows, block_cols);
  MaskRow live(static_cast<std::size_t>(block_cols));
  std::int64_t seen = 0;
  return visit_rows(source, [&](std::int64_t b, std::int64_t r, const MaskRow& mask) {
    std::optional<Violation> found;
    if (r % height == 0) std::fill(live.begin(), live.end(), std::uint8_t{0});
    for_each_kept(mask.data(), source.in(), [&](std::int64_t i) {
      std::uint8_t& block = live[static_cast<std::size_t>(i / width)];
      if (block != 0 || found) return;
      block = 1;
      if (seen++ < allowed) return;
      const std::int64_t begin = i / width * width;
      found = violation(source, b, r, begin, std::min(begin + width, source.in()),
                        fmt::format("non-zero block number {}, {} allows {} of {} blocks", seen,
                                    pattern.to_string(), allowed, block_rows * block_cols));
    });
    return found;
  });
}

std::optional<Violation> check_vnm_group(const RowSource& source, const Pattern& pattern,
                                         std::int64_t b, std::int64_t r, std::int64_t begin,
                                         const MaskRow& mask, MaskRow& live) {
  const std::int64_t end = std::min<std::int64_t>(begin + pattern.m, source.in());
  const std::int64_t kept = count(mask, begin, end);
  if (kept > pattern.n) {
    return violation(
        source, b, r, begin, end,
        fmt::format("{} non-zeros, {} allows {}", kept, pattern.to_string(), pattern.n));
  }
  for (std::int64_t i = begin; i < end; ++i) {
    const auto index = static_cast<std::size_t>(i);
    live[index] = static_cast<std::uint8_t>(live[index] | mask[index]);
  }
  const std::int64_t columns = count(live, begin, end);
  if (columns <= kVnmLiveColumns) return std::nullopt;
  return violation(source, b, r, begin, end,
                   fmt::format("{} columns live in the panel from row {}, {} allows {}", columns,
                               r / pattern.v * pattern.v, pattern.to_string(), kVnmLiveColumns));
}

std::optional<Violation> check_vnm(const RowSource& source, const Pattern& pattern) {
  MaskRow live(static_cast<std::size_t>(source.in()));
  return visit_rows(
      source, [&](std::int64_t b, std::int64_t r, const MaskRow& mask) -> std::optional<Violation> {
        if (r % pattern.v == 0) std::fill(live.begin(), live.end(), std::uint8_t{0});
        for (std::int64_t begin = 0; begin < source.in(); begin += pattern.m) {
          auto found = check_vnm_group(source, pattern, b, r, begin, mask, live);
          if (found) return found;
        }
        return std::nullopt;
      });
}

std::optional<Violation> check_fan_in(const RowSource& source, const Pattern& pattern) {
  const std::int64_t allowed = fan_in_count(pattern, source.in());
  return visit_rows(
      source, [&](std::int64_t b, std::int64_t r, const MaskRow& mask) -> std::optional<Violation> {
        const std::int64_t kept = count(mask, 0, source.in());
        if (kept <= allowed) return std::nullopt;
        return violation(source, b, r, 0, source.in(),
                         fmt::format("{} non-zeros, {} allows {} of {} inputs", kept,
                                     pattern.to_string(), allowed, source.in()));
      });
}

}  // namespace

std::int64_t most_kept(const Pattern& pattern, std::int64_t rows, std::int64_t cols) {
  return allowed_count(pattern.sparsity, rows, cols);
}

std::int64_t count_kept(const RowSource& source) {
  std::int64_t total = 0;
  visit_rows(source, [&](std::int64_t, std::int64_t, const MaskRow& mask) {
    total += count(mask, 0, source.in());
    return std::optional<Violation>();
  });
  return total;
}

std::optional<Violation> find_violation(const RowSource& source, const Pattern& pattern) {
  const std::string fault = pattern_fault(pattern);
  if (!fault.empty()) fail(ErrorCode::kInvalidArgument, "pattern: {}", fault);
  switch (pattern.kind) {
    case Pattern::Kind::kNm:
      return check_nm(source, pattern);
    case Pattern::Kind::kBlock:
      return check_block(source, pattern);
    case Pattern::Kind::kVnm:
      return check_vnm(source, pattern);
    case Pattern::Kind::kFanIn:
      return check_fan_in(source, pattern);
    case Pattern::Kind::kUnstructured:
      break;
  }
  return check_unstructured(source, pattern);
}

}  // namespace detail

std::optional<Violation> find_violation(const ConstMatrixView& values, const Pattern& pattern) {
  return detail::find_violation(*detail::dense_source(values, nullptr), pattern);
}

std::int64_t count_nonzeros(const ConstMatrixView& values) {
  return detail::count_kept(*detail::dense_source(values, nullptr));
}

}  // namespace gossamer
