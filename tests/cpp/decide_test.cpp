// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "fake_kernels.h"
#include "plan/decide.h"

namespace gossamer {
namespace {

using plan::Candidate;
using plan::Evidence;
using plan::kProbeCount;
using plan::kProbes;
using plan::Verdict;

bool contains(const std::string& text, std::string_view word) {
  return text.find(word) != std::string::npos;
}

// Evidence of exact ratios: dense takes 10 ms, a row 10 ms / ratio(bucket).
Candidate row_with(const char* name, const std::function<double(int bucket)>& ratio,
                   double spread = 0.0, double dense_seconds = 10e-3) {
  test::reset_fakes();
  Candidate candidate{
      .name = name, .layout = find_linear_kernel(name)->layout, .at = {}, .model = {}};
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    const double r = ratio(kProbes[p].bucket);
    candidate.at[p] = {.known = true,
                       .seconds = dense_seconds / r,
                       .dense_seconds = dense_seconds,
                       .ratio = r,
                       .spread = spread};
  }
  return candidate;
}

Evidence evidence_of(std::vector<Candidate> candidates) {
  Evidence evidence;
  evidence.candidates = std::move(candidates);
  evidence.probed.fill(true);
  evidence.has_dense = true;
  return evidence;
}

Plan verdict_of(const Evidence& evidence, MemoryMode memory = MemoryMode::kDefault) {
  return plan::decide(evidence, memory, "").plan;
}

TEST(Decide, SparseNeedsFivePercentSomewhere) {
  const auto with = [](double best) {
    return verdict_of(evidence_of(
        {row_with("fake_bitmask", [best](int bucket) { return bucket == 2 ? best : 1.0; })}));
  };
  const Plan wins = with(1.051);
  EXPECT_TRUE(wins.sparse);
  EXPECT_EQ(wins.choices[0].kernel, "fake_bitmask");
  const Plan loses = with(1.049);
  EXPECT_FALSE(loses.sparse);
  EXPECT_EQ(loses.choices[2].kernel, kDenseKernel);
  EXPECT_TRUE(contains(loses.reason, "plain: no token count gains 5 %")) << loses.reason;
  EXPECT_TRUE(
      contains(loses.reason, "dense 10.00 ms, best sparse fake_bitmask 9.53 ms at 5 tokens"))
      << loses.reason;
}

TEST(Decide, OneSlowBucketKeepsTheLayerPlain) {
  const auto with = [](double least, MemoryMode memory) {
    return verdict_of(
        evidence_of(
            {row_with("fake_bitmask", [least](int bucket) { return bucket == 0 ? least : 3.0; })}),
        memory);
  };
  EXPECT_TRUE(with(0.971, MemoryMode::kDefault).sparse);
  const Plan plain = with(0.969, MemoryMode::kDefault);
  EXPECT_FALSE(plain.sparse);
  EXPECT_TRUE(
      contains(plain.reason, "dense 10.00 ms, best sparse fake_bitmask 10.32 ms at 1 token"))
      << plain.reason;
  EXPECT_TRUE(contains(plain.reason, "memory=\"speed\"")) << plain.reason;
  for (const PlanChoice& choice : plain.choices) EXPECT_EQ(choice.kernel, kDenseKernel);

  const Plan speed = with(0.969, MemoryMode::kSpeed);
  EXPECT_TRUE(speed.sparse);
  EXPECT_EQ(speed.choices[0].kernel, kDenseKernel);
  EXPECT_DOUBLE_EQ(speed.choices[0].milliseconds, 10.0);
  EXPECT_EQ(speed.choices[1].kernel, "fake_bitmask");
  EXPECT_FALSE(verdict_of(evidence_of({row_with("fake_bitmask", [](int) { return 0.9; })}),
                          MemoryMode::kSpeed)
                   .sparse);
}

TEST(Decide, WhatACallMayCostIsForgivenToALayerThatGainsOnTheWhole) {
  const auto with = [](double least, double gain, double dense_seconds) {
    return verdict_of(evidence_of({row_with(
        "fake_bitmask", [=](int bucket) { return bucket == 0 ? least : gain; }, 0.0,
        dense_seconds)}));
  };
  const Plan packed = with(0.8, 3.0, 10e-6);  // 12.5 µs instead of 10
  EXPECT_TRUE(packed.sparse) << packed.reason;
  EXPECT_TRUE(contains(packed.reason,
                       "least gain: dense 10.0 µs, fake_bitmask 12.5 µs at 1 token (0.80x), "
                       "within the 3.0 µs that a call may cost"))
      << packed.reason;
  EXPECT_FALSE(with(0.74, 3.0, 10e-6).sparse) << "13.5 µs: 3.5 more, 3.3 with 3 % of noise";
  EXPECT_FALSE(with(0.8, 3.0, 1e-3).sparse) << "250 µs more";
  EXPECT_FALSE(with(0.3, 1.2, 1e-6).sparse) << "buckets of 1.2 do not make up for 0.3";
}

TEST(Decide, ADenseCopyRunsWhereAPackedCallWouldNotEarnItsCost) {
  const auto choice = [](double first, double dense_seconds, MemoryMode memory) {
    const Plan plan =
        verdict_of(evidence_of({row_with(
                       "fake_bitmask", [=](int bucket) { return bucket == 0 ? first : 3.0; }, 0.0,
                       dense_seconds)}),
                   memory);
    return std::string(plan.choices[0].kernel);
  };
  // 60 µs with a gain of 1.03: 58.3 µs, and 61.3 with the call.
  EXPECT_EQ(choice(1.03, 60e-6, MemoryMode::kSpeed), kDenseKernel);
  EXPECT_EQ(choice(1.03, 60e-6, MemoryMode::kDefault), "fake_bitmask") << "no copy is at hand";
  EXPECT_EQ(choice(1.06, 60e-6, MemoryMode::kSpeed), "fake_bitmask") << "56.6 + 3 µs";
  EXPECT_EQ(choice(1.03, 1e-3, MemoryMode::kSpeed), "fake_bitmask");
  EXPECT_EQ(choice(0.98, 1e-3, MemoryMode::kSpeed), kDenseKernel);
}

TEST(Decide, BucketsAsideChooseARowAndDecideNothing) {
  const auto with = [](double aside, double others, MemoryMode memory) {
    Evidence evidence = evidence_of(
        {row_with("fake_bitmask", [=](int bucket) { return bucket < 2 ? aside : others; })});
    evidence.last_aside = 1;
    return verdict_of(evidence, memory);
  };
  const Plan packed = with(0.5, 2.0, MemoryMode::kDefault);
  EXPECT_TRUE(packed.sparse);
  EXPECT_EQ(packed.choices[0].kernel, "fake_bitmask");
  EXPECT_TRUE(contains(packed.reason, "; not counted: dense 10.00 ms, fake_bitmask 20.00 ms at 1"))
      << packed.reason;
  EXPECT_EQ(with(0.5, 2.0, MemoryMode::kSpeed).choices[1].kernel, kDenseKernel);
  EXPECT_FALSE(with(3.0, 1.0, MemoryMode::kDefault).sparse) << "it gains nowhere else";
  Evidence alone = evidence_of({row_with("fake_bitmask", [](int) { return 0.5; })});
  alone.last_aside = 1;
  std::fill(alone.probed.begin() + 3, alone.probed.end(), false);
  EXPECT_FALSE(verdict_of(alone).sparse) << "nothing else was timed, so they count";
}

TEST(Decide, OneEndOfABucketIsEnoughToBeSlower) {
  Candidate row = row_with("fake_bitmask", [](int) { return 2.0; });
  row.at[6].ratio = 0.9;  // 32 tokens; 9 tokens win by far
  EXPECT_FALSE(verdict_of(evidence_of({row})).sparse);
}

TEST(Decide, OneLayoutServesAllBuckets) {
  // The K-blocked layout is best on average, though bitmask wins one bucket.
  const auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 4.0 : 1.1; });
  const auto slow = row_with("fake_kcsr64_slow", [](int b) { return b < 3 ? 2.0 : 1.2; });
  const auto fast = row_with("fake_kcsr64_fast", [](int b) { return b < 3 ? 1.0 : 3.0; });
  const Plan plan = verdict_of(evidence_of({bitmask, slow, fast}), MemoryMode::kLow);
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.layout, Layout::kKcsr64);
  EXPECT_FALSE(plan.second.has_value());
  EXPECT_EQ(plan.choices[0].kernel, "fake_kcsr64_slow");
  EXPECT_EQ(plan.choices[6].kernel, "fake_kcsr64_fast");
}

TEST(Decide, TwoToFourAndFiveToEightTokensAreAskedApart) {
  const auto slow = row_with("fake_kcsr64_slow", [](int b) { return b < 2 ? 2.0 : 1.2; });
  const auto fast = row_with("fake_kcsr64_fast", [](int b) { return b < 2 ? 1.5 : 3.0; });
  const Plan plan = verdict_of(evidence_of({slow, fast}));
  const auto at = [&](std::int64_t tokens) {
    return plan.choices[static_cast<std::size_t>(token_bucket(tokens))].kernel;
  };
  EXPECT_EQ(at(2), "fake_kcsr64_slow");
  EXPECT_EQ(at(4), "fake_kcsr64_slow");
  EXPECT_EQ(at(5), "fake_kcsr64_fast");
  EXPECT_EQ(at(8), "fake_kcsr64_fast");
}

TEST(Decide, TwoToFourAndFiveToEightTokensCountAsOneBucket) {
  // 1.5 times as fast in both, 1.25 times as slow with 9 to 32 and 1.25 with 33 to 128 tokens:
  // 1.5 / 1.25 ** 2 is less than one, 1.5 ** 2 / 1.25 ** 2 would not be.
  const auto few = row_with("fake_bitmask", [](int b) {
    return b == 1 || b == 2 ? 3.0 : b == 3 || b == 4 ? 1.6 : 2.0;
  });
  const auto even = row_with("fake_kcsr64_fast", [](int) { return 2.0; });
  EXPECT_EQ(verdict_of(evidence_of({few, even}), MemoryMode::kLow).layout, Layout::kKcsr64);
}

TEST(Decide, TwoLayoutsServeWhatEachIsBetterAt) {
  const auto bitmask = row_with("fake_bitmask", [](int b) { return b < 2 ? 4.0 : 1.1; });
  const auto kcsr = row_with("fake_kcsr64_fast", [](int b) { return b < 2 ? 2.0 : 3.0; });
  const Plan plan = verdict_of(evidence_of({bitmask, kcsr}));
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.layout, Layout::kBitmask) << "it is a format";
  EXPECT_EQ(plan.second, Layout::kKcsr64);
  for (int bucket = 0; bucket < kTokenBuckets; ++bucket) {
    EXPECT_EQ(plan.choices[static_cast<std::size_t>(bucket)].kernel,
              bucket < 2 ? "fake_bitmask" : "fake_kcsr64_fast");
  }
  EXPECT_TRUE(contains(plan.reason,
                       "sparse in layouts bitmask and kcsr64: dense 10.00 ms, fake_bitmask 2.50 ms "
                       "at 1 token (4.00x)"))
      << plan.reason;
  EXPECT_TRUE(contains(plan.reason,
                       "two layouts, because with kcsr64 alone fake_kcsr64_fast takes 5.00 ms at 1 "
                       "token, fake_bitmask 2.50 ms"))
      << plan.reason;
  EXPECT_FALSE(verdict_of(evidence_of({bitmask, kcsr}), MemoryMode::kLow).second.has_value());
}

TEST(Decide, ASecondLayoutNeedsTenPercentSomewhere) {
  const auto second_with = [](double gain) {
    return verdict_of(evidence_of({row_with("fake_bitmask",
                                            [gain](int b) { return b == 0 ? 2.0 * gain : 1.0; }),
                                   row_with("fake_kcsr64_fast", [](int) { return 2.0; })}))
        .second;
  };
  EXPECT_EQ(second_with(1.101), Layout::kKcsr64);
  EXPECT_FALSE(second_with(1.099).has_value());
}

TEST(Decide, RowsAreComparedByTheirLeastTimes) {
  // Dense was disturbed beside one row, so that its ratio is better though its times are not.
  auto bitmask = row_with("fake_bitmask", [](int) { return 3.0; });
  const auto slow = row_with("fake_kcsr64_slow", [](int) { return 2.0; });
  auto fast = row_with("fake_kcsr64_fast", [](int) { return 1.9; });
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    bitmask.at[p].least = 5.1e-3;  // dense takes 10 ms
    fast.at[p].least = 4.9e-3;
  }
  const Plan plan = verdict_of(evidence_of({bitmask, slow, fast}));
  EXPECT_EQ(plan.layout, Layout::kKcsr64);
  EXPECT_FALSE(plan.second.has_value());
  EXPECT_EQ(plan.choices[0].kernel, "fake_kcsr64_fast");
}

TEST(Decide, TwoLayoutsPackALayerThatNeitherAlonePacks) {
  const auto few = row_with("fake_bitmask", [](int b) { return b < 2 ? 1.0 : 0.9; });
  const auto many = row_with("fake_kcsr64_fast", [](int b) { return b < 2 ? 0.9 : 1.5; });
  const Evidence evidence = evidence_of({few, many});
  EXPECT_FALSE(verdict_of(evidence, MemoryMode::kLow).sparse);
  const Plan plan = verdict_of(evidence);
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.second, Layout::kKcsr64);
}

TEST(Decide, LayoutsThatAreLargerThanTheFormatAreNotHeldTwice) {
  auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 4.0 : 1.1; });
  auto kcsr = row_with("fake_kcsr64_fast", [](int) { return 2.0; });
  kcsr.small = false;
  const Plan plan = verdict_of(evidence_of({bitmask, kcsr}));
  EXPECT_EQ(plan.layout, Layout::kKcsr64);
  EXPECT_FALSE(plan.second.has_value());
  const Plan fastest = verdict_of(evidence_of({bitmask, kcsr}), MemoryMode::kSpeed);
  EXPECT_EQ(fastest.layout, Layout::kBitmask);
  EXPECT_EQ(fastest.second, Layout::kKcsr64);
}

TEST(Decide, ALargerLayoutThatIsHeldAnywayTakesASmallOneWithIt) {
  const auto with = [](std::int64_t small_bytes, double first, MemoryMode memory) {
    auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 4.0 : 1.1; });
    auto kcsr = row_with("fake_kcsr64_fast", [=](int b) { return b == 0 ? first : 3.0; });
    bitmask.bytes = small_bytes;
    kcsr.bytes = 200;
    kcsr.small = false;
    return verdict_of(evidence_of({bitmask, kcsr}), memory);
  };
  const Plan pair = with(100, 2.0, MemoryMode::kDefault);
  EXPECT_EQ(pair.layout, Layout::kBitmask);
  EXPECT_EQ(pair.second, Layout::kKcsr64);
  EXPECT_EQ(pair.choices[0].kernel, "fake_bitmask");
  EXPECT_EQ(pair.choices[5].kernel, "fake_kcsr64_fast");
  EXPECT_FALSE(with(101, 2.0, MemoryMode::kDefault).second.has_value()) << "1.505 times 200 bytes";
  EXPECT_FALSE(with(0, 2.0, MemoryMode::kDefault).second.has_value()) << "bytes are not known";
  EXPECT_FALSE(with(100, 2.0, MemoryMode::kLow).second.has_value());
  const Plan alone = with(100, 0.5, MemoryMode::kDefault);
  EXPECT_EQ(alone.layout, Layout::kBitmask) << "the larger one loses at one token";
  EXPECT_FALSE(alone.second.has_value()) << "so nothing larger is held anyway";
}

TEST(Decide, OfTwoLargerLayoutsNoneTakesTheOtherWithIt) {
  auto first = row_with("fake_bitmask", [](int b) { return b == 0 ? 4.0 : 1.1; });
  auto second = row_with("fake_kcsr64_fast", [](int b) { return b == 0 ? 2.0 : 3.0; });
  first.small = second.small = false;
  first.bytes = 10;
  second.bytes = 200;
  EXPECT_FALSE(verdict_of(evidence_of({first, second})).second.has_value());
}

TEST(Decide, TwoLayoutsThatAreSlowerOnTheWholeGiveWayToALargerOne) {
  const auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 2.4 : 1.1; });
  const auto kcsr = row_with("fake_kcsr64_fast", [](int b) { return b == 0 ? 1.0 : 1.3; });
  auto large = row_with("fake_kcsr64_slow", [](int) { return 2.0; });
  large.layout = Layout::kKcsr256;
  large.small = false;
  const Plan plan = verdict_of(evidence_of({bitmask, kcsr, large}));
  EXPECT_EQ(plan.layout, Layout::kKcsr256);
  EXPECT_FALSE(plan.second.has_value());
}

TEST(Decide, APlainLayerHasNoSecondLayout) {
  const auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 0.5 : 1.0; });
  const auto kcsr = row_with("fake_kcsr64_fast", [](int b) { return b == 0 ? 1.0 : 0.5; });
  const Plan plan = verdict_of(evidence_of({bitmask, kcsr}));
  EXPECT_FALSE(plan.sparse);
  EXPECT_FALSE(plan.second.has_value());
  EXPECT_FALSE(contains(plan.reason, "two layouts")) << plan.reason;
}

TEST(Decide, ASecondLayoutWhoseGainIsInDoubtIsTimedAgain) {
  const auto contested = [](double gain, double spread) {
    const auto bitmask =
        row_with("fake_bitmask", [gain](int b) { return b == 0 ? 2.0 * gain : 1.0; }, spread);
    const auto kcsr = row_with("fake_kcsr64_fast", [](int) { return 2.0; }, spread);
    return plan::decide(evidence_of({bitmask, kcsr}), MemoryMode::kDefault, "").contested.size();
  };
  EXPECT_EQ(contested(1.11, 0.04), 2u) << "both rows at one token";
  EXPECT_EQ(contested(1.09, 0.04), 2u);
  EXPECT_EQ(contested(1.2, 0.04), 0u);
  EXPECT_EQ(contested(1.0, 0.04), 0u);
}

TEST(Decide, ALayoutThatIsSlowerSomewhereLosesToOneThatIsNot) {
  const auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 0.5 : 9.0; });
  const auto kcsr = row_with("fake_kcsr64_fast", [](int) { return 1.2; });
  const Evidence evidence = evidence_of({bitmask, kcsr});
  EXPECT_EQ(verdict_of(evidence, MemoryMode::kLow).layout, Layout::kKcsr64);
  EXPECT_EQ(verdict_of(evidence, MemoryMode::kSpeed).layout, Layout::kBitmask);
  const Plan plan = verdict_of(evidence);
  EXPECT_EQ(plan.second, Layout::kKcsr64);
  EXPECT_EQ(plan.choices[0].kernel, "fake_kcsr64_fast");
  EXPECT_EQ(plan.choices[1].kernel, "fake_bitmask");
}

TEST(Decide, DoubtsAboutEveryLayoutAreRaisedBeforeALayerStaysDense) {
  // One layout is slower beyond doubt, the other's time at one token is uncertain.
  const auto bitmask = row_with("fake_bitmask", [](int b) { return b == 0 ? 0.5 : 9.0; }, 0.01);
  const auto kcsr = row_with("fake_kcsr64_fast", [](int b) { return b == 0 ? 0.96 : 2.0; }, 0.1);
  const Verdict verdict = plan::decide(evidence_of({bitmask, kcsr}), MemoryMode::kDefault, "");
  EXPECT_FALSE(verdict.plan.sparse);
  ASSERT_EQ(verdict.contested.size(), 1u);
  EXPECT_EQ(verdict.contested[0].candidate, 1u);
  EXPECT_EQ(verdict.contested[0].probe, 0u);
}

TEST(Decide, CountsThatWereNotTimedTakeTheRowThatTheModelExpectsToWin) {
  Candidate few = row_with("fake_kcsr64_slow", [](int) { return 2.0; });
  Candidate many = row_with("fake_kcsr64_fast", [](int) { return 1.9; });
  for (std::size_t p = 0; p < kProbeCount; ++p) {
    // The model is off by a factor of ten for one row and right for the other.
    few.model[p] = few.at[0].seconds * 0.1 * static_cast<double>(kProbes[p].tokens) / 32.0;
    many.model[p] = many.at[0].seconds * std::max(1.0, static_cast<double>(kProbes[p].tokens) / 64);
  }
  Evidence evidence = evidence_of({few, many});
  const auto timed_below = [&](std::ptrdiff_t end) {
    std::fill(evidence.probed.begin() + end, evidence.probed.end(), false);
    for (Candidate& row : evidence.candidates) {
      std::fill(row.at.begin() + end, row.at.end(), plan::Timing{});
    }
    return verdict_of(evidence);
  };
  EXPECT_EQ(timed_below(9).choices[4].kernel, "fake_kcsr64_slow") << "33 and 128 tokens were timed";
  EXPECT_EQ(timed_below(8).choices[4].kernel, "fake_kcsr64_fast") << "33 were, 128 were not";
  const Plan plan = timed_below(7);
  EXPECT_EQ(plan.choices[3].kernel, "fake_kcsr64_slow");
  EXPECT_EQ(plan.choices[4].kernel, "fake_kcsr64_fast");
  EXPECT_TRUE(contains(plan.choices[4].reason, "taken from 9 tokens, the most that was timed"))
      << plan.choices[4].reason;
  EXPECT_TRUE(contains(plan.choices[7].reason, "the model expects fake_kcsr64_fast to be faster"))
      << plan.choices[7].reason;
}

TEST(Decide, CountsThatWereNotTimedTakeTheLargestThatWas) {
  Evidence evidence = evidence_of({row_with("fake_bitmask", [](int) { return 2.0; })});
  for (std::size_t p = 10; p < kProbeCount; ++p) {
    evidence.probed[p] = false;
    evidence.candidates[0].at[p] = {};
  }
  evidence.limit = "512 tokens and more were not timed";
  const Plan plan = verdict_of(evidence);
  EXPECT_TRUE(plan.sparse);
  EXPECT_TRUE(contains(plan.reason, evidence.limit));
  EXPECT_EQ(plan.choices[7].kernel, "fake_bitmask");
  EXPECT_EQ(plan.choices[7].tokens, 129);
  EXPECT_TRUE(contains(plan.choices[7].reason, "taken from 129 tokens")) << plan.choices[7].reason;
}

TEST(Decide, OnlyTimesNearAThresholdAreContested) {
  const auto contested = [](double ratio, double spread) {
    const Evidence evidence =
        evidence_of({row_with("fake_bitmask", [ratio](int) { return ratio; }, spread)});
    return plan::decide(evidence, MemoryMode::kDefault, "").contested.size();
  };
  EXPECT_EQ(contested(1.06, 0.02), kProbeCount);
  EXPECT_EQ(contested(1.06, 0.005), 0u);
  EXPECT_EQ(contested(0.96, 0.02), kProbeCount);
  EXPECT_EQ(contested(2.0, 0.2), 0u);
}

}  // namespace
}  // namespace gossamer
