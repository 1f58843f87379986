// SPDX-License-Identifier: BSD-3-Clause
// How K-blocked calls are cut among threads, as a pure function.
#include "cpu/spmm_split.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace gossamer::cpu {
namespace {

constexpr std::int64_t kLanes = 16;
constexpr SplitCost kCost{};

SplitShape shape_of(std::int64_t threads, std::int64_t panels, std::int64_t in, std::int64_t kept) {
  return {.tokens = panels * kLanes * 4 - 5,
          .in = in,
          .out = 768,
          .kept = kept,
          .lanes = kLanes,
          .widest = 4,
          .threads = threads};
}

/// The least over every grid that fits the threads and every width.
double least_cycles(const SplitShape& shape) {
  double least = std::numeric_limits<double>::infinity();
  for (const int vectors : kPanelVectors) {
    if (vectors > shape.widest) continue;
    for (std::int64_t tokens = 1; tokens <= shape.threads; ++tokens) {
      for (std::int64_t rows = 1; tokens * rows <= shape.threads; ++rows) {
        least = std::min(least, split_cycles(shape, kCost, {tokens, rows, vectors}));
      }
    }
  }
  return least;
}

TEST(SpmmSplit, TakesNoMoreThreadsThanThereAreAndTheBestGrid) {
  for (std::int64_t threads = 1; threads <= 64; ++threads) {
    for (std::int64_t panels = 1; panels <= 40; ++panels) {
      for (const std::int64_t kept : {2000, 60000, 2000000}) {
        const SplitShape shape = shape_of(threads, panels, 768, kept);
        const SpmmSplit split = best_split(shape, kCost);
        ASSERT_GE(split.token_parts, 1);
        ASSERT_GE(split.row_parts, 1);
        ASSERT_LE(split.token_parts * split.row_parts, threads);
        ASSERT_LE(split_cycles(shape, kCost, split), least_cycles(shape) * (1.0 + 1e-12))
            << threads << " threads, " << panels << " panels, " << kept << " kept";
      }
    }
  }
}

TEST(SpmmSplit, ThreePanelsOfRowsTakeTwoThreadsTwoRounds) {
  SplitShape shape = shape_of(2, 4, 64, 2000000);
  const SpmmSplit rows{1, 2, 4};
  const double anywhere = split_cycles(shape, kCost, rows);
  shape.row_panels = 4;
  EXPECT_DOUBLE_EQ(split_cycles(shape, kCost, rows), anywhere);
  shape.row_panels = 3;
  EXPECT_GT(split_cycles(shape, kCost, rows), 1.3 * anywhere);
  const SpmmSplit split = best_split(shape, kCost);
  EXPECT_EQ(split.token_parts, 2);
  EXPECT_EQ(split.row_parts, 1);
}

TEST(SpmmSplit, PartsCoverEveryPanelOnce) {
  for (std::int64_t parts = 1; parts <= 64; ++parts) {
    for (std::int64_t panels = parts; panels <= 130; ++panels) {
      ASSERT_EQ(first_panel(panels, parts, 0), 0);
      ASSERT_EQ(first_panel(panels, parts, parts), panels);
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t count =
            first_panel(panels, parts, part + 1) - first_panel(panels, parts, part);
        ASSERT_GE(count, panels / parts);
        ASSERT_LE(count, detail::ceil_div(panels, parts));
      }
    }
  }
}

// 3 panels on 16 threads: 3 parts of tokens by 5 of rows, in one round.
TEST(SpmmSplit, AnOddNumberOfPanelsLeavesNoSecondRound) {
  const SplitShape shape = shape_of(16, 3, 768, 2000000);
  const SpmmSplit split = best_split(shape, kCost);
  EXPECT_LE(split.token_parts * split.row_parts, 16);
  EXPECT_GE(split.token_parts * split.row_parts, 15);
}

TEST(SpmmSplit, ManyPanelsAreCutByTokensAlone) {
  const SpmmSplit split = best_split(shape_of(16, 32, 768, 200000), kCost);
  EXPECT_EQ(split.token_parts, 16);
  EXPECT_EQ(split.row_parts, 1);
}

// 16 parts of rows would each transpose all of X; narrower panels leave each thread a quarter.
TEST(SpmmSplit, FewPanelsAreNarrowed) {
  const SpmmSplit split = best_split(shape_of(16, 2, 4096, 400000), kCost);
  EXPECT_EQ(split.token_parts, 4);
  EXPECT_EQ(split.row_parts, 4);
  EXPECT_EQ(split.vectors, 2);
}

// What each part of tokens would index again is cut by rows instead.
TEST(SpmmSplit, IndexingKeepsPartsOfTokensFew) {
  const SplitShape shape = shape_of(16, 2, 4096, 400000);
  const SpmmSplit split = best_split(shape, {.per_position = 2.0});
  EXPECT_LT(split.token_parts, best_split(shape, kCost).token_parts);
}

TEST(SpmmSplit, MoreThreadsAreNeverSlower) {
  for (std::int64_t panels = 1; panels <= 40; ++panels) {
    double before = std::numeric_limits<double>::infinity();
    for (std::int64_t threads = 1; threads <= 64; ++threads) {
      const SplitShape shape = shape_of(threads, panels, 768, 60000);
      const double cycles = split_cycles(shape, kCost, best_split(shape, kCost));
      ASSERT_LE(cycles, before * (1.0 + 1e-12)) << threads << " threads, " << panels << " panels";
      before = cycles;
    }
  }
}

}  // namespace
}  // namespace gossamer::cpu
