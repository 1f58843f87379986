// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <map>

#include "fake_kernels.h"
#include "plan/series.h"

namespace gossamer {
namespace {

using test::constant;
using test::fake_dense;
using test::fake_weight;
using test::fakes;
using test::message_of;
using test::uncached;

bool contains(const std::string& text, std::string_view word) {
  return text.find(word) != std::string::npos;
}

Plan planned(const PackedWeight& weight, const DensePeer& dense, const PlanOptions& options) {
  return plan_linear(weight, {}, host_machine(), dense, options);
}

TEST(PlanModel, IsDeterministicAndFollowsThePromises) {
  test::reset_fakes();
  fakes()[0].promises = constant(30e-9);
  fakes()[1].promises = constant(20e-9);
  fakes()[2].promises = constant(10e-9);
  PlanOptions options = uncached();
  options.mode = PlanMode::kModel;
  DensePeer dense;
  dense.seconds = constant(15e-9);
  const Plan first = planned(fake_weight(), dense, options);
  EXPECT_TRUE(first.sparse);
  EXPECT_EQ(first.layout, Layout::kKcsr64);
  EXPECT_EQ(first.choices[3].kernel, "fake_kcsr64_fast");
  EXPECT_TRUE(contains(first.reason, "modelled")) << first.reason;
  const Plan second = planned(fake_weight(), dense, options);
  EXPECT_EQ(second.reason, first.reason);
  dense.seconds = constant(9e-9);
  EXPECT_FALSE(planned(fake_weight(), dense, options).sparse);
  for (const auto& fake : fakes()) EXPECT_EQ(fake.calls, 0) << "a model runs nothing";
}

TEST(PlanModel, CallOverheadCountsAgainstSparse) {
  test::reset_fakes();
  PlanOptions options = uncached();
  options.mode = PlanMode::kModel;
  DensePeer dense;
  dense.seconds = constant(10e-6);
  EXPECT_TRUE(planned(fake_weight(), dense, options).sparse);
  options.call_overhead = 11e-6;
  EXPECT_FALSE(planned(fake_weight(), dense, options).sparse);
}

TEST(PlanModel, HasADenseModelOfItsOwn) {
  test::reset_fakes();
  PlanOptions options = uncached();
  options.mode = PlanMode::kModel;
  EXPECT_TRUE(planned(fake_weight(), {}, options).sparse);
  for (auto& fake : fakes()) fake.promises = constant(1.0);
  const Plan plan = planned(fake_weight(), {}, options);
  EXPECT_GT(plan.choices[0].dense_milliseconds, 0.0);
}

TEST(PlanMeasure, ConvertsToTheFasterLayout) {
  test::reset_fakes();
  fakes()[2].takes = constant(20e-6);
  const Plan plan = planned(fake_weight(), fake_dense(constant(80e-6)), uncached());
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.layout, Layout::kKcsr64);
  // Other work on the machine may spoil the times of one bucket, hardly of most.
  const auto right = std::count_if(plan.choices.begin(), plan.choices.end(), [](const auto& c) {
    return c.kernel == "fake_kcsr64_fast" &&
           std::fabs(c.dense_milliseconds / c.milliseconds - 4.0) < 1.5;
  });
  EXPECT_GE(right, kTokenBuckets / 2 + 1);
  EXPECT_GT(fakes()[0].calls, 0);
  EXPECT_FALSE(plan.from_cache);
}

TEST(PlanMeasure, StaysPlainWithNumbersWhereDenseWins) {
  test::reset_fakes();
  const Plan plan = planned(fake_weight(), fake_dense(constant(20e-6)), uncached());
  EXPECT_FALSE(plan.sparse);
  EXPECT_EQ(plan.layout, Layout::kBitmask) << "the weight stays as it is";
  EXPECT_TRUE(contains(plan.reason, "plain: dense ")) << plan.reason;
  EXPECT_TRUE(contains(plan.reason, " µs, best sparse fake_")) << plan.reason;
  EXPECT_TRUE(contains(plan.reason, " token")) << plan.reason;
}

TEST(PlanMeasure, SpeedModeRunsDenseWhereItIsFaster) {
  test::reset_fakes();
  fakes()[0].takes = [](std::int64_t tokens) { return tokens <= 8 ? 60e-6 : 20e-6; };
  const DensePeer dense = fake_dense(constant(40e-6));
  PlanOptions options = uncached();
  options.kernel = "";
  EXPECT_FALSE(planned(fake_weight(), dense, options).sparse);
  options.memory = MemoryMode::kSpeed;
  const Plan plan = planned(fake_weight(), dense, options);
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.choices[0].kernel, kDenseKernel);
  EXPECT_EQ(plan.choices[1].kernel, kDenseKernel);
  EXPECT_EQ(plan.choices[4].kernel, "fake_bitmask");
}

TEST(PlanMeasure, APhaseInWhichDenseIsSlowDecidesNothing) {
  test::reset_fakes();
  for (auto& fake : fakes()) fake.takes = constant(60e-6);
  const auto with = [](int slow_calls, MemoryMode memory) {
    int calls = 0;
    PlanOptions options = uncached();
    options.memory = memory;
    return planned(fake_weight(), fake_dense([&](std::int64_t tokens) {
                     if (tokens != 128) return 120e-6;
                     return ++calls <= slow_calls ? 90e-6 : 45e-6;
                   }),
                   options);
  };
  constexpr int kAll = 1000;
  constexpr int kFirstLook = 2 * plan::kMaxRounds + 4;
  EXPECT_NE(with(kAll, MemoryMode::kSpeed).choices[4].kernel, kDenseKernel);
  EXPECT_EQ(with(kFirstLook, MemoryMode::kSpeed).choices[4].kernel, kDenseKernel);
  EXPECT_NE(with(kFirstLook, MemoryMode::kSpeed).choices[3].kernel, kDenseKernel);
  EXPECT_TRUE(with(kAll, MemoryMode::kDefault).sparse);
  EXPECT_FALSE(with(kFirstLook, MemoryMode::kDefault).sparse);
}

TEST(PlanMeasure, OnlyTimesRowsThatTheModelFindsPromising) {
  test::reset_fakes();
  fakes()[0].promises = constant(3e-15);  // three times the best
  planned(fake_weight(), fake_dense(constant(100e-6)), uncached());
  EXPECT_EQ(fakes()[0].calls, 0);
  EXPECT_GT(fakes()[1].calls, 0);
}

TEST(PlanMeasure, WithoutADensePeerTheFastestRowsWin) {
  test::reset_fakes();
  fakes()[0].takes = constant(10e-6);
  const Plan plan = planned(fake_weight(), {}, uncached());
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.choices[0].kernel, "fake_bitmask");
  EXPECT_EQ(plan.choices[0].dense_milliseconds, 0.0);
  EXPECT_TRUE(contains(plan.reason, "no dense peer")) << plan.reason;
}

TEST(PlanMeasure, CallOverheadCountsAgainstSparse) {
  test::reset_fakes();
  for (auto& fake : fakes()) fake.takes = constant(20e-6);
  PlanOptions options = uncached();
  const DensePeer dense = fake_dense(constant(60e-6));
  EXPECT_TRUE(planned(fake_weight(), dense, options).sparse);
  options.call_overhead = 100e-6;
  EXPECT_FALSE(planned(fake_weight(), dense, options).sparse);
}

TEST(PlanMeasure, KeepsToItsBudget) {
  test::reset_fakes();
  // 4096 tokens would take 4 s a call.
  fakes()[0].takes = [](std::int64_t tokens) { return 5e-4 * static_cast<double>(tokens); };
  fakes()[1].takes = fakes()[2].takes = fakes()[0].takes;
  const DensePeer dense =
      fake_dense([](std::int64_t tokens) { return 1e-3 * static_cast<double>(tokens); });
  PlanOptions options = uncached();
  options.seconds_budget = 0.2;
  const std::clock_t start = std::clock();  // the time of other processes is not charged
  const Plan plan = planned(fake_weight(), dense, options);
  const double took = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_LT(took, 2 * options.seconds_budget);
  EXPECT_TRUE(contains(plan.reason, "tokens and more were not timed: one ")) << plan.reason;
  EXPECT_TRUE(contains(plan.choices[7].reason, "taken from")) << plan.choices[7].reason;
  EXPECT_LE(plan.choices[7].tokens, 50) << "dense takes a quarter of the budget at 50 tokens";
}

// A call takes 50 µs, but its thread waits 12 ms for a processor in the first two calls at every
// token count and in every eighth: charged, the waits would use up the budget at a few tokens, and
// the warm-ups alone would say that dense is faster.
TEST(PlanMeasure, WaitsForOtherWorkAreNeitherChargedNorBelieved) {
  test::reset_fakes();
  std::map<std::int64_t, int> calls;
  const auto stalling = [&](std::int64_t tokens) {
    const int call = calls[tokens]++;
    return call < 2 || call % 8 == 7 ? 12e-3 : 50e-6;
  };
  for (auto& row : fakes()) row.takes = stalling;
  const Plan plan = planned(fake_weight(), fake_dense(constant(200e-6)), uncached());
  EXPECT_TRUE(plan.sparse) << plan.reason;
  for (const PlanChoice& choice : plan.choices) EXPECT_LT(choice.milliseconds, 1.0);
  EXPECT_EQ(plan.choices[7].tokens, 4096) << plan.reason;
}

TEST(PlanMeasure, ADenseCallLongerThanTheBudgetIsStillJudged) {
  test::reset_fakes();
  const DensePeer dense = fake_dense(constant(0.1));
  PlanOptions options = uncached();
  options.seconds_budget = 0.02;
  const auto start = std::chrono::steady_clock::now();
  const Plan plan = planned(fake_weight(), dense, options);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.choices[7].tokens, 1);
  EXPECT_TRUE(contains(plan.reason, "2 tokens and more were not timed: one dense call takes about"))
      << plan.reason;
  EXPECT_LT(took.count(), 0.35) << "a warm-up and a round of the one call";
}

TEST(PlanForced, TheRowIsTakenWhateverDenseDoes) {
  test::reset_fakes();
  PlanOptions options = uncached();
  options.kernel = "fake_kcsr64_slow";
  for (const PlanMode mode : {PlanMode::kMeasure, PlanMode::kModel}) {
    options.mode = mode;
    const Plan plan = planned(fake_weight(), fake_dense(constant(5e-6)), options);
    EXPECT_TRUE(plan.sparse);
    EXPECT_EQ(plan.layout, Layout::kKcsr64);
    for (const PlanChoice& choice : plan.choices) EXPECT_EQ(choice.kernel, "fake_kcsr64_slow");
    EXPECT_TRUE(contains(plan.reason, "kernel is fake_kcsr64_slow")) << plan.reason;
  }
  options.kernel = kDenseKernel;
  EXPECT_FALSE(planned(fake_weight(), fake_dense(constant(1.0)), options).sparse);
}

TEST(PlanForced, RowsThatAreNotThereOrDoNotFitAreErrors) {
  test::reset_fakes();
  PlanOptions options = uncached();
  options.kernel = "fake_kcsr64_fsat";
  const std::string unknown = message_of([&] { planned(fake_weight(), {}, options); });
  EXPECT_TRUE(contains(unknown, "kernel is 'fake_kcsr64_fsat', and there is no such kernel"))
      << unknown;
  EXPECT_TRUE(contains(unknown, "nearest names are fake_kcsr64_fast")) << unknown;

  options.kernel = "fake_bitmask";
  test::Random random(1);
  const Pattern pattern = Pattern::unstructured(0.5);
  const PackedWeight other = test::pack_matrix(
      test::random_sparse(random, DType::kFloat32, pattern, 8, 16), pattern, Layout::kBitmask);
  const auto refused = [&] { planned(other, {}, options); };
  EXPECT_EQ(test::code_of(refused), ErrorCode::kUnsupported);
  EXPECT_TRUE(contains(message_of(refused), "a fake that only takes 47 inputs"));
}

TEST(Plan, EmptyWeightsStayPlain) {
  test::reset_fakes();
  const test::Matrix none = test::zeros(DType::kFloat32, 0, 5);
  const PackedWeight weight = test::pack_matrix(none, Pattern::unstructured(0.5), Layout::kBitmask);
  const Plan plan = planned(weight, {}, uncached());
  EXPECT_FALSE(plan.sparse);
  EXPECT_TRUE(contains(plan.reason, "the weight is empty"));
}

TEST(Plan, SaysWhyNoKernelComputesAWeight) {
  test::reset_fakes();
  Machine bare = host_machine();
  bare.isa = kIsaGeneric;
  bare.name = "bare";
  test::Random random(1);
  const Pattern pattern = Pattern::unstructured(0.5);
  const PackedWeight weight = test::pack_matrix(
      test::random_sparse(random, DType::kFloat8E4M3, pattern, 8, 16), pattern, Layout::kBitmask);
  for (const LinearKernel& row : linear_kernels()) {
    if (why_not(row, describe(weight), bare).empty()) GTEST_SKIP() << row.name << " computes it";
  }
  const Plan plan = plan_linear(weight, {}, bare, {}, uncached());
  EXPECT_FALSE(plan.sparse);
  EXPECT_TRUE(contains(plan.reason, "no kernel computes it on bare")) << plan.reason;
  EXPECT_TRUE(contains(plan.reason, "this one is float8_e4m3fn")) << plan.reason;
}

}  // namespace
}  // namespace gossamer
