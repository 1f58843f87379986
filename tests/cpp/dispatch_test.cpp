// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <thread>

#include "fake_kernels.h"
#include "gossamer/openmp.h"

namespace gossamer {
namespace {

using test::code_of;
using test::fake_weight;
using test::fakes;
using test::kFakeIn;
using test::kFakeOut;
using test::message_of;

LinearKernel named(std::string_view name) {
  LinearKernel kernel = test::fake_kernel<0>();
  kernel.name = name;
  kernel.refuses = [](const LinearDesc&) { return std::string("never computes"); };
  return kernel;
}

TEST(KernelTable, IsOrderedByNameAndFindsEveryRow) {
  test::reset_fakes();
  const auto rows = linear_kernels();
  ASSERT_GE(rows.size(), 3u);
  EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end(),
                             [](const auto& a, const auto& b) { return a.name < b.name; }));
  for (const LinearKernel& row : rows) EXPECT_EQ(find_linear_kernel(row.name), &row);
  EXPECT_EQ(find_linear_kernel("no such kernel"), nullptr);
}

TEST(KernelTable, SpansStayValidWhenRowsAreAdded) {
  test::reset_fakes();
  const auto before = linear_kernels();
  const std::vector<LinearKernel> copy(before.begin(), before.end());
  {
    std::string name = "test_added_later";  // the table keeps its own text
    register_linear_kernel(named(name));
    name.assign(name.size(), '?');
  }
  EXPECT_NE(find_linear_kernel("test_added_later"), nullptr);
  EXPECT_EQ(linear_kernels().size(), copy.size() + 1);
  for (std::size_t i = 0; i < copy.size(); ++i) EXPECT_EQ(before[i].name, copy[i].name);
}

TEST(KernelTable, RefusesNamesTwiceAndRowsWithoutFunctions) {
  register_linear_kernel(named("test_twice"));
  const auto again = [] { register_linear_kernel(named("test_twice")); };
  EXPECT_EQ(code_of(again), ErrorCode::kInvalidArgument);
  EXPECT_NE(message_of(again).find("'test_twice' is registered already"), std::string::npos);
  LinearKernel empty;
  empty.name = "test_empty";
  EXPECT_EQ(code_of([&] { register_linear_kernel(empty); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(find_linear_kernel("test_empty"), nullptr);
}

TEST(KernelTable, RefusesNamesWhoseHashIsTaken) {
  // FNV-1a of these two words is the same number, and of "jxsspqaa" and "dense".
  ASSERT_EQ(kernel_hash("declinate"), kernel_hash("macallums"));
  ASSERT_EQ(kernel_hash("jxsspqaa"), kernel_hash(kDenseKernel));
  register_linear_kernel(named("declinate"));
  EXPECT_NE(message_of([] { register_linear_kernel(named("macallums")); }).find("'declinate'"),
            std::string::npos);
  EXPECT_NE(message_of([] { register_linear_kernel(named("jxsspqaa")); }).find("dense kernel"),
            std::string::npos);
  EXPECT_NE(message_of([] { register_linear_kernel(named(kDenseKernel)); }).find("dense kernel"),
            std::string::npos);
}

TEST(KernelTable, MayBeReadWhileRowsAreAdded) {
  test::reset_fakes();
  std::thread writer([] {
    for (int i = 0; i < 50; ++i) register_linear_kernel(named("test_threads_" + std::to_string(i)));
  });
  std::size_t last = 0;
  bool grew = true;
  for (int i = 0; i < 2000; ++i) {
    const auto rows = linear_kernels();
    grew &= rows.size() >= last && find_linear_kernel("fake_bitmask") != nullptr;
    last = rows.size();
  }
  writer.join();
  EXPECT_TRUE(grew);
  EXPECT_NE(find_linear_kernel("test_threads_49"), nullptr);
}

TEST(KernelTable, WhyNotNamesWhatIsMissing) {
  LinearKernel kernel = test::fake_kernel<0>();
  LinearDesc desc;
  desc.out = kFakeOut;
  desc.in = kFakeIn;
  Machine machine;
  machine.name = "testmachine";
  EXPECT_EQ(why_not(kernel, desc, machine), "");
  desc.weight_dtype = DType::kFloat16;
  EXPECT_EQ(why_not(kernel, desc, machine), "computes float32 weights, this one is float16");
  desc.weight_dtype = DType::kFloat32;
  desc.in = 48;
  EXPECT_EQ(why_not(kernel, desc, machine), "a fake that only takes 47 inputs");
  kernel.needs = kIsaAvx2 | kIsaAmxInt8;
  machine.isa = kIsaAvx2;
  EXPECT_EQ(why_not(kernel, desc, machine), "needs amx_int8, which testmachine does not have");
}

TEST(TokenBucket, EndsWhereTheHeaderSays) {
  const std::vector<std::pair<std::int64_t, int>> expected{
      {0, 0},  {1, 0},   {2, 1},   {4, 1},   {5, 2},   {8, 2},    {9, 3},    {32, 3},
      {33, 4}, {128, 4}, {129, 5}, {512, 5}, {513, 6}, {2048, 6}, {2049, 7}, {1 << 30, 7}};
  for (const auto& [tokens, bucket] : expected) EXPECT_EQ(token_bucket(tokens), bucket) << tokens;
  EXPECT_EQ(token_bucket(std::numeric_limits<std::int64_t>::max()), 7);
}

Plan plan_of(Layout layout, const std::string& kernel) {
  Plan plan;
  plan.sparse = true;
  plan.layout = layout;
  for (PlanChoice& choice : plan.choices) choice.kernel = kernel;
  return plan;
}

TEST(ChooseKernel, TakesTheHeadersChoiceByBucket) {
  test::reset_fakes();
  PackedWeight weight = convert(fake_weight(), Layout::kKcsr64);
  Plan plan = plan_of(Layout::kKcsr64, "fake_kcsr64_slow");
  plan.choices[3].kernel = "fake_kcsr64_fast";
  plan.choices[4].kernel = kDenseKernel;
  store_plan(weight, plan);
  EXPECT_EQ(choose_kernel(weight, 1, 1)->name, "fake_kcsr64_slow");
  EXPECT_EQ(choose_kernel(weight, 9, 1)->name, "fake_kcsr64_fast");
  EXPECT_EQ(choose_kernel(weight, 32, 1)->name, "fake_kcsr64_fast");
  EXPECT_EQ(choose_kernel(weight, 33, 1), nullptr);
  EXPECT_EQ(choose_kernel(weight, 129, 1)->name, "fake_kcsr64_slow");
}

TEST(ChooseKernel, AsksTheModelOnceForAForeignPlan) {
  test::reset_fakes();
  PackedWeight weight = convert(fake_weight(kFakeOut + 1), Layout::kKcsr64);
  store_plan(weight, plan_of(Layout::kKcsr64, "from_another_machine"));
  static int asked = 0;
  fakes()[1].promises = [](std::int64_t) { return ++asked, 2e-15; };
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(choose_kernel(weight, 5, 1)->name, "fake_kcsr64_fast");
  }
  EXPECT_EQ(asked, 1);
  fakes()[2].promises = test::constant(3e-15);
  EXPECT_EQ(choose_kernel(weight, 9, 1)->name, "fake_kcsr64_slow");  // another bucket, asked anew
}

TEST(ChooseKernel, DoesNotRunAPlannedRowOfAnotherLayout) {
  test::reset_fakes();
  PackedWeight weight = convert(fake_weight(kFakeOut + 2), Layout::kKcsr64);
  store_plan(weight, plan_of(Layout::kKcsr64, "fake_bitmask"));
  EXPECT_EQ(choose_kernel(weight, 1, 1)->layout, Layout::kKcsr64);
}

TEST(StorePlan, RefusesAnotherLayout) {
  test::reset_fakes();
  PackedWeight weight = fake_weight();
  const auto store = [&] { store_plan(weight, plan_of(Layout::kKcsr64, "fake_kcsr64_fast")); };
  EXPECT_EQ(code_of(store), ErrorCode::kInvalidArgument);
  EXPECT_NE(message_of(store).find("convert()"), std::string::npos);
}

struct Call {
  PackedWeight weight = fake_weight();
  std::vector<float> x = std::vector<float>(4 * kFakeIn);
  std::vector<float> y = std::vector<float>(4 * kFakeOut, -7.0f);
  LinearArgs args{.weight = weight, .parallel = {}};

  Call() {
    args.tokens = 4;
    args.x = x.data();
    args.x_stride = kFakeIn;
    args.y = y.data();
    args.y_stride = kFakeOut;
  }
  std::string message() {
    return message_of([this] { run_linear(args); });
  }
};

TEST(RunLinear, CallsTheChosenRow) {
  test::reset_fakes();
  Call call;
  run_linear(call.args);
  EXPECT_EQ(fakes()[0].calls, 1);
  store_plan(call.weight, plan_of(Layout::kBitmask, std::string(kDenseKernel)));
  run_linear(call.args);  // only a door can run dense
  EXPECT_EQ(fakes()[0].calls, 2);
}

TEST(RunLinear, RefusesArgumentsThatCannotBeRight) {
  test::reset_fakes();
  const auto message = [](auto change) {
    Call call;
    change(call.args);
    EXPECT_EQ(code_of([&] { run_linear(call.args); }), ErrorCode::kInvalidArgument);
    return call.message();
  };
  const auto has = [](const std::string& text, const char* word) {
    return text.find(word) != std::string::npos;
  };
  EXPECT_TRUE(has(message([](LinearArgs& a) { a.tokens = -3; }), "tokens is -3"));
  EXPECT_TRUE(has(message([](LinearArgs& a) { a.x = nullptr; }), "x is null"));
  EXPECT_TRUE(has(message([](LinearArgs& a) { a.y = nullptr; }), "y is null"));
  EXPECT_TRUE(
      has(message([](LinearArgs& a) { a.x_stride = -kFakeIn; }), "x has a row stride of -47"));
  EXPECT_TRUE(has(message([](LinearArgs& a) { a.y_stride = 0; }), "rows overlap"));
  EXPECT_TRUE(has(message([](LinearArgs& a) { a.y_stride = -kFakeOut; }), "negative"));
  EXPECT_TRUE(has(message([](LinearArgs& a) {
                    a.residual = a.x;
                    a.residual_stride = -1;
                  }),
                  "residual has a row stride"));
  EXPECT_TRUE(has(message([](LinearArgs& a) { a.activation = static_cast<Activation>(9); }),
                  "activation is 9"));
  EXPECT_EQ(fakes()[0].calls, 0);
}

TEST(RunLinear, OneRowMayServeAllTokens) {
  test::reset_fakes();
  Call call;
  call.args.x_stride = 0;
  run_linear(call.args);
  EXPECT_EQ(fakes()[0].calls, 1);
}

TEST(RunLinear, OneRowNeedsNoStride) {
  test::reset_fakes();
  Call call;
  call.args.tokens = 1;
  call.args.x_stride = 0;
  call.args.y_stride = 0;
  run_linear(call.args);
  EXPECT_EQ(fakes()[0].calls, 1);
}

TEST(RunLinear, NoTokensTouchNothing) {
  test::reset_fakes();
  Call call;
  call.args.tokens = 0;
  call.args.x = nullptr;
  call.args.y = nullptr;
  run_linear(call.args);
  EXPECT_EQ(fakes()[0].calls, 0);
}

TEST(RunLinear, WithoutInputsGivesBiasAndResidual) {
  const test::Matrix none = test::zeros(DType::kFloat32, 2, 0);
  const PackedWeight weight = test::pack_matrix(none, Pattern::unstructured(0.5), Layout::kBitmask);
  const std::vector<float> bias{1.0f, -2.0f};
  const std::vector<float> residual{0.5f, 0.5f, -4.0f, 4.0f};
  std::vector<float> y(4, 99.0f);
  LinearArgs args{.weight = weight, .parallel = {}};
  args.tokens = 2;
  args.y = y.data();
  args.y_stride = 2;
  args.bias = bias.data();
  args.residual = residual.data();
  args.residual_stride = 2;
  args.activation = Activation::kRelu;
  run_linear(args);
  EXPECT_EQ(y, (std::vector<float>{1.5f, 0.0f, 0.0f, 2.0f}));
}

TEST(RunLinear, SaysWhyNothingComputesAWeight) {
  // int8 weights have no kernel in a layout of row pairs, and fakes none at all.
  test::reset_fakes();
  test::Random random(3);
  const Pattern pattern = Pattern::nm(2, 4);
  const test::Matrix values = test::random_sparse(random, DType::kInt8, pattern, 8, 16);
  const PackedWeight weight =
      convert(test::pack_matrix(values, pattern, Layout::kNm), Layout::kNm24Pairs);
  const LinearDesc desc = describe(weight);
  for (const LinearKernel& row : linear_kernels()) {
    if (row.layout == Layout::kNm24Pairs && why_not(row, desc, host_machine()).empty()) {
      GTEST_SKIP() << row.name << " computes it";
    }
  }
  const auto choose = [&] { choose_kernel(weight, 1, 1); };
  EXPECT_EQ(code_of(choose), ErrorCode::kUnsupported);
  EXPECT_NE(message_of(choose).find("no kernel computes a 8 x 16 weight of int8"),
            std::string::npos)
      << message_of(choose);
}

// |computed - exact| of a sum of K products in any order: (K + 2)·eps·(sum |x||w| + |bias|)
// (Higham, Accuracy and Stability of Numerical Algorithms, §3.1), doubled since both sides round.
void expect_close(const std::vector<float>& got, const std::vector<float>& want,
                  const test::Matrix& weight, const test::Matrix& x, const test::Matrix& bias) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t o = 0; o < weight.rows; ++o) {
      double magnitude = std::fabs(test::element(bias, o));
      for (std::int64_t i = 0; i < weight.cols; ++i) {
        magnitude += std::fabs(test::element(x, t * x.cols + i) *
                               test::element(weight, o * weight.cols + i));
      }
      const double bound = 2.0 * static_cast<double>(weight.cols + 2) *
                           std::numeric_limits<float>::epsilon() * magnitude;
      const auto at = static_cast<std::size_t>(t * weight.rows + o);
      ASSERT_NEAR(got[at], want[at], bound) << "token " << t << ", output " << o;
    }
  }
}

TEST(RunLinear, AgreesWithTheReferenceInEveryLayoutThatHasARow) {
  test::Random random(11);
  int computed = 0;
  for (const Pattern& pattern : {Pattern::unstructured(0.8), Pattern::nm(2, 4)}) {
    const test::Matrix values = test::random_sparse(random, DType::kFloat32, pattern, 37, 132);
    const test::Matrix x = test::random_matrix(random, DType::kFloat32, 19, 132);
    const test::Matrix bias = test::random_matrix(random, DType::kFloat32, 1, 37);
    const PackedWeight packed = test::pack_matrix(values, pattern, format_for(pattern));
    for (const Layout layout : test::all_layouts()) {
      if (!test::layout_holds(layout, pattern)) continue;
      const PackedWeight weight = convert(packed, layout);
      const LinearDesc desc = describe(weight, {.bias = true});
      if (std::none_of(linear_kernels().begin(), linear_kernels().end(), [&](const auto& row) {
            return row.layout == layout && why_not(row, desc, host_machine()).empty();
          })) {
        continue;
      }
      std::vector<float> got(19 * 37);
      std::vector<float> want(19 * 37);
      LinearArgs args{.weight = weight, .parallel = openmp_parallel_for(2)};
      args.tokens = 19;
      args.x = x.as<float>();
      args.x_stride = 132;
      args.y = got.data();
      args.y_stride = 37;
      args.bias = bias.as<float>();
      run_linear(args);
      args.y = want.data();
      reference_linear(args);
      expect_close(got, want, values, x, bias);
      ++computed;
    }
  }
  EXPECT_GE(computed, 2);
}

// The variable is read once a process, so that its values need processes of their own: this
// program again, with only the (otherwise disabled) reporter.
std::string report_with_kernel(const std::string& name) {
  const std::string command =
      "env GOSSAMER_KERNEL=" + name + " \"$(readlink -f /proc/" + std::to_string(getpid()) +
      "/exe)\" --gtest_also_run_disabled_tests --gtest_filter=KernelReport.DISABLED_Print";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  char buffer[1024];
  while (pipe && std::fgets(buffer, sizeof(buffer), pipe.get()) != nullptr) text += buffer;
  const std::size_t begin = text.find("report:");
  return begin == std::string::npos ? text : text.substr(begin, text.find('\n', begin) - begin);
}

TEST(KernelReport, DISABLED_Print) {
  test::reset_fakes();
  fakes()[1].promises = test::constant(2e-15);
  const PackedWeight weight = convert(fake_weight(), Layout::kKcsr64);
  try {
    const LinearKernel* row = choose_kernel(weight, 1, 1);
    const Plan plan = plan_linear(fake_weight(), {}, host_machine(),
                                  test::fake_dense(test::constant(1e-6)), test::uncached());
    std::printf("report:%s %s\n", row != nullptr ? std::string(row->name).c_str() : "none",
                plan.choices[0].kernel.c_str());
  } catch (const Error& error) {
    std::printf("report:error %s\n", error.what());
  }
}

TEST(ForcedByEnvironment, TheRowRunsWhereItComputesTheWeight) {
  EXPECT_EQ(report_with_kernel(""), "report:fake_kcsr64_fast dense");
  EXPECT_EQ(report_with_kernel("fake_kcsr64_slow"), "report:fake_kcsr64_slow fake_kcsr64_slow");
  EXPECT_EQ(report_with_kernel("fake_bitmask"), "report:fake_kcsr64_fast fake_bitmask");
  EXPECT_EQ(report_with_kernel("dense"), "report:none dense");
}

TEST(ForcedByEnvironment, AnUnknownRowIsAnErrorWithTheNearestNames) {
  const std::string report = report_with_kernel("fake_kcsr64_fest");
  for (const char* word : {"report:error", "GOSSAMER_KERNEL is 'fake_kcsr64_fest'",
                           "nearest names are fake_kcsr64_fast"}) {
    EXPECT_NE(report.find(word), std::string::npos) << report;
  }
}

}  // namespace
}  // namespace gossamer
