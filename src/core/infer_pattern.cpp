// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "core/layouts.h"
#include "core/row_source.h"
#include "gossamer/mask.h"

namespace gossamer {
namespace {

using detail::ceil_div;

struct NmCandidate {
  int n;
  int m;
};
constexpr std::array<NmCandidate, 9> kNmCandidates{
    {{1, 4}, {2, 4}, {1, 8}, {2, 8}, {4, 8}, {1, 16}, {2, 16}, {4, 16}, {8, 16}}};
constexpr double kLeastSlotUse = 0.8;

struct BlockSize {
  std::int64_t rows;
  std::int64_t cols;
};
constexpr std::array<BlockSize, 6> kBlockSizes{
    {{64, 64}, {32, 32}, {16, 16}, {16, 1}, {4, 1}, {1, 4}}};
constexpr double kLeastZeroBlocks = 0.25;
constexpr double kLeastBlockFill = 0.9;

/// What one block size finds in a weight.
class BlockCensus {
 public:
  BlockCensus(BlockSize size, const detail::RowSource& source)
      : size_(size), out_(source.out()), in_(source.in()) {
    kept_.assign(static_cast<std::size_t>(ceil_div(in_, size.cols)), 0);
  }

  void add_row(std::int64_t row, const std::vector<std::uint8_t>& mask) {
    for (std::size_t block = 0; block < kept_.size(); ++block) {
      const auto begin = static_cast<std::int64_t>(block) * size_.cols;
      const auto end = std::min(begin + size_.cols, in_);
      kept_[block] = std::accumulate(mask.begin() + begin, mask.begin() + end, kept_[block]);
    }
    if (row % size_.rows == size_.rows - 1 || row == out_ - 1) close_block_row(row);
  }

  std::optional<Pattern> verdict(std::int64_t kept) const {
    // In a weight smaller than a block any zeros hold together.
    if (out_ < size_.rows || in_ < size_.cols) return std::nullopt;
    if (zero_blocks_ < kLeastZeroBlocks * static_cast<double>(blocks_)) return std::nullopt;
    if (static_cast<double>(kept) < kLeastBlockFill * static_cast<double>(live_positions_)) {
      return std::nullopt;
    }
    return Pattern::block(static_cast<int>(size_.rows), static_cast<int>(size_.cols),
                          zero_blocks_ / static_cast<double>(blocks_));
  }

 private:
  void close_block_row(std::int64_t row) {
    const std::int64_t height = row % size_.rows + 1;
    for (std::size_t block = 0; block < kept_.size(); ++block) {
      const auto begin = static_cast<std::int64_t>(block) * size_.cols;
      ++blocks_;
      if (kept_[block] == 0) {
        zero_blocks_ += 1.0;
      } else {
        live_positions_ += height * std::min(size_.cols, in_ - begin);
      }
      kept_[block] = 0;
    }
  }

  BlockSize size_;
  std::int64_t out_;
  std::int64_t in_;
  std::vector<std::int64_t> kept_;  ///< of the blocks of the current block row
  std::int64_t blocks_ = 0;
  double zero_blocks_ = 0.0;
  std::int64_t live_positions_ = 0;
};

/// The most kept in any group of 4, 8 and 16 columns, and how many N slots N:M has.
class GroupCensus {
 public:
  explicit GroupCensus(const detail::RowSource& source)
      : rows_(source.batch() * source.out()), in_(source.in()) {}

  void add_row(const std::vector<std::uint8_t>& mask) {
    for (std::int64_t begin = 0; begin < in_; begin += 16) {
      std::array<int, 4> quarters{};
      for (std::int64_t i = begin; i < std::min(begin + 16, in_); ++i) {
        quarters[static_cast<std::size_t>((i - begin) / 4)] += mask[static_cast<std::size_t>(i)];
      }
      const int low = quarters[0] + quarters[1];
      const int high = quarters[2] + quarters[3];
      most4_ = std::max(most4_, *std::max_element(quarters.begin(), quarters.end()));
      most8_ = std::max({most8_, low, high});
      most16_ = std::max(most16_, low + high);
    }
  }

  std::optional<Pattern> verdict(std::int64_t kept) const {
    std::optional<Pattern> best;
    for (const NmCandidate& c : kNmCandidates) {
      const int most = c.m == 4 ? most4_ : (c.m == 8 ? most8_ : most16_);
      if (in_ < c.m) continue;  // less than one group shows nothing
      if (most > c.n || static_cast<double>(kept) < kLeastSlotUse * slots(c)) continue;
      const Pattern pattern = Pattern::nm(c.n, c.m);
      if (!best || pattern.sparsity > best->sparsity) best = pattern;
    }
    return best;
  }

 private:
  /// Positions that the pattern lets stay; a last group of fewer than N columns has only those.
  double slots(const NmCandidate& c) const {
    const std::int64_t a_row = in_ / c.m * c.n + std::min<std::int64_t>(in_ % c.m, c.n);
    return static_cast<double>(rows_) * static_cast<double>(a_row);
  }

  std::int64_t rows_;
  std::int64_t in_;
  int most4_ = 0;
  int most8_ = 0;
  int most16_ = 0;
};

/// Whether all rows keep the same number.
struct FanInCensus {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  std::int64_t most = 0;

  void add_row(std::int64_t kept) {
    least = std::min(least, kept);
    most = std::max(most, kept);
  }
};

}  // namespace

Pattern infer_pattern(const ConstMatrixView& values) {
  const auto source = detail::dense_source(values, nullptr);
  GroupCensus groups(*source);
  std::vector<BlockCensus> blocks;
  blocks.reserve(std::size(kBlockSizes));
  for (const BlockSize size : kBlockSizes) blocks.emplace_back(size, *source);
  FanInCensus fan_in;
  std::int64_t kept = 0;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(source->in()));
  for (std::int64_t b = 0; b < source->batch(); ++b) {
    for (std::int64_t r = 0; r < source->out(); ++r) {
      source->read_mask(b, r, mask.data());
      const std::int64_t here = std::accumulate(mask.begin(), mask.end(), std::int64_t{0});
      kept += here;
      fan_in.add_row(here);
      groups.add_row(mask);
      for (BlockCensus& census : blocks) census.add_row(r, mask);
    }
  }
  const std::int64_t positions = source->batch() * source->out() * source->in();
  if (positions == 0) return Pattern::unstructured(0.0);
  if (kept == 0) return Pattern::unstructured(1.0);  // zeros everywhere show no structure
  if (const auto found = groups.verdict(kept)) return *found;
  for (const BlockCensus& census : blocks) {
    if (const auto found = census.verdict(kept)) return *found;
  }
  const auto fraction = [](std::int64_t part, std::int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  if (fan_in.least == fan_in.most && fan_in.most < source->in()) {
    return Pattern::fan_in(fraction(source->in() - fan_in.most, source->in()));
  }
  return Pattern::unstructured(fraction(positions - kept, positions));
}

}  // namespace gossamer
