// SPDX-License-Identifier: BSD-3-Clause
// Which row a convolution runs, and what its plan says.
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "gossamer/conv.h"
#include "plan/conv_plan.h"
#include "plan/series.h"
#include "testing.h"

namespace gossamer::test {
namespace {

constexpr std::int64_t kChannels = 16;

PackedWeight filters(double sparsity, Layout layout = Layout::kBitmask,
                     DType dtype = DType::kFloat32, std::int64_t side = 3) {
  Random random(3);
  const Pattern pattern = Pattern::unstructured(sparsity);
  const Matrix values = random_sparse(random, dtype, pattern, kChannels, side * side * kChannels);
  PackOptions options;
  options.kernel_h = options.kernel_w = side;
  return pack(values.const_view(), nullptr, pattern, layout, options);
}

Conv2dLayer padded_layer() {
  Conv2dLayer layer;
  layer.pad_top = layer.pad_bottom = layer.pad_left = layer.pad_right = 1;
  return layer;
}

void spin(double seconds) {
  const plan::Stopwatch watch;
  while (watch.seconds() < seconds) {
  }
}

Conv2dDensePeer dense_that_takes(double seconds) {
  Conv2dDensePeer peer;
  peer.run = [seconds](const Conv2dShape&) { spin(seconds); };
  return peer;
}

PlanOptions uncached() {
  PlanOptions options;
  options.cache = "off";
  options.seconds_budget = 0.2;
  return options;
}

Plan planned(const PackedView& weight, const Conv2dDensePeer& dense,
             const PlanOptions& options = uncached()) {
  return plan_conv2d(weight, padded_layer(), {}, host_machine(), dense, options);
}

void set_plan(PackedWeight& weight, std::string_view kernel) {
  Plan plan;
  plan.layout = weight.view().layout();
  for (PlanChoice& choice : plan.choices) choice.kernel = kernel;
  store_plan(weight, plan);
}

TEST(ConvProbes, CoverEveryBucketInOrder) {
  const PackedWeight weight = filters(0.9);
  std::array<bool, kTokenBuckets> covered{};
  int last = 0;
  for (const plan::ConvProbe& probe : plan::kConvProbes) {
    EXPECT_GE(probe.bucket, last);
    last = probe.bucket;
    covered[static_cast<std::size_t>(probe.bucket)] = true;
    const Conv2dShape s = plan::probe_shape(weight, padded_layer(), probe);
    EXPECT_EQ(s.pixels(), probe.images * probe.side * probe.side);
    if (probe.bucket > 0) {
      EXPECT_EQ(token_bucket(s.pixels()), probe.bucket);
    }
  }
  for (const bool is_covered : covered) EXPECT_TRUE(is_covered);
}

TEST(ConvProbes, ReachMapsThatPaddingAloneMakesLarger) {
  const PackedWeight weight = filters(0.9);
  Conv2dLayer layer;
  layer.pad_top = layer.pad_bottom = layer.pad_left = layer.pad_right = 9;
  layer.stride_h = 2;
  for (const plan::ConvProbe& probe : plan::kConvProbes) {
    const Conv2dShape s = plan::probe_shape(weight, layer, probe);
    EXPECT_GE(s.height, 1);
    EXPECT_GE(s.pixels(), probe.images * probe.side * probe.side);
  }
}

TEST(ConvPlan, IsSparseWhereDenseIsSlowEverywhere) {
  const PackedWeight weight = filters(0.95);
  const Plan plan = planned(weight, dense_that_takes(5e-3));
  EXPECT_TRUE(plan.sparse) << plan.reason;
  EXPECT_FALSE(plan.from_cache);
  for (const PlanChoice& choice : plan.choices) {
    const Conv2dKernel* row = find_conv2d_kernel(choice.kernel);
    ASSERT_NE(row, nullptr) << choice.kernel;
    EXPECT_TRUE(row->layout == plan.layout || row->layout == plan.second) << choice.kernel;
    EXPECT_TRUE(host_machine().has(row->needs));
    EXPECT_GT(choice.dense_milliseconds, choice.milliseconds);
  }
  EXPECT_NE(plan.reason.find("pixel"), std::string::npos) << plan.reason;
}

TEST(ConvPlan, StaysPlainWhereDenseIsFastSomewhere) {
  const PackedWeight weight = filters(0.5);
  Conv2dDensePeer peer;
  // Faster than any kernel on the smallest maps alone, by more than the 3 µs that are forgiven.
  peer.run = [](const Conv2dShape& s) { spin(s.pixels() <= 8 ? 0.0 : 5e-3); };
  PlanOptions options = uncached();
  options.call_overhead = 20e-6;
  const Plan plain = planned(weight, peer, options);
  EXPECT_FALSE(plain.sparse) << plain.reason;
  EXPECT_EQ(plain.layout, weight.view().layout());
  EXPECT_EQ(plain.choices[3].kernel, kDenseKernel);
  options.memory = MemoryMode::kSpeed;
  const Plan both = planned(weight, peer, options);
  EXPECT_TRUE(both.sparse) << both.reason;
  EXPECT_EQ(both.choices[1].kernel, kDenseKernel);
  EXPECT_EQ(both.choices[2].kernel, kDenseKernel);
  EXPECT_NE(both.choices[3].kernel, kDenseKernel);
}

TEST(ConvPlan, FourPixelsDecideNothingWhereAFilterHasSeveralTaps) {
  Conv2dDensePeer peer;
  peer.run = [](const Conv2dShape& s) { spin(s.pixels() <= 4 ? 0.0 : 5e-3); };
  PlanOptions options = uncached();
  options.call_overhead = 20e-6;
  const Plan packed = planned(filters(0.5), peer, options);
  EXPECT_TRUE(packed.sparse) << packed.reason;
  EXPECT_NE(packed.reason.find("; not counted: dense "), std::string::npos) << packed.reason;
  EXPECT_NE(packed.reason.find(" at 4 pixels (0.00x)"), std::string::npos) << packed.reason;
  for (const PlanChoice& choice : packed.choices) EXPECT_NE(choice.kernel, kDenseKernel);
  options.memory = MemoryMode::kSpeed;
  const Plan both = planned(filters(0.5), peer, options);
  EXPECT_EQ(both.choices[0].kernel, kDenseKernel);
  EXPECT_EQ(both.choices[1].kernel, kDenseKernel);
  EXPECT_NE(both.choices[2].kernel, kDenseKernel);
  const PackedWeight one_tap = filters(0.5, Layout::kBitmask, DType::kFloat32, 1);
  options.memory = MemoryMode::kDefault;
  EXPECT_FALSE(plan_conv2d(one_tap, {}, {}, host_machine(), peer, options).sparse);
}

TEST(ConvPlan, TakesTheRowThatIsAskedFor) {
  const PackedWeight weight = filters(0.5);
  PlanOptions options = uncached();
  options.kernel = "generic_conv2d_kcsr64_f32";
  const Plan plan = planned(weight, dense_that_takes(0.0), options);
  EXPECT_TRUE(plan.sparse);
  EXPECT_EQ(plan.layout, Layout::kKcsr64);
  EXPECT_EQ(plan.choices[6].kernel, options.kernel);
  options.kernel = kDenseKernel;
  EXPECT_FALSE(planned(weight, dense_that_takes(1e-3), options).sparse);
  options.kernel = "generic_spmm_kcsr64_f32";
  EXPECT_NE(message_of([&] { planned(weight, {}, options); }).find("is no row"), std::string::npos);
}

TEST(ConvPlan, ModelIsDeterministicAndTimesNothing) {
  const PackedWeight weight = filters(0.99);
  PlanOptions options = uncached();
  options.mode = PlanMode::kModel;
  Conv2dDensePeer peer;
  bool called = false;
  peer.run = [&](const Conv2dShape&) { called = true; };
  const Plan first = planned(weight, peer, options);
  const Plan second = planned(weight, peer, options);
  EXPECT_FALSE(called);
  EXPECT_EQ(first.reason, second.reason);
  EXPECT_EQ(first.choices[4].milliseconds, second.choices[4].milliseconds);
  EXPECT_NE(first.reason.find("modelled"), std::string::npos);
}

TEST(ConvPlan, OtherDtypesStayPlain) {
  const PackedWeight weight = filters(0.9, Layout::kBitmask, DType::kFloat64);
  const Plan plan = planned(weight, dense_that_takes(1e-3));
  EXPECT_FALSE(plan.sparse);
  EXPECT_NE(plan.reason.find("float64 weights"), std::string::npos) << plan.reason;
}

TEST(ConvPlan, RefusesAMatrix) {
  Random random(4);
  const Pattern pattern = Pattern::unstructured(0.5);
  const PackedWeight weight = pack_matrix(random_sparse(random, DType::kFloat32, pattern, 8, 18),
                                          pattern, Layout::kBitmask);
  EXPECT_NE(message_of([&] { planned(weight, {}); }).find("is a matrix"), std::string::npos);
}

TEST(ConvPlan, IsReadFromTheCache) {
  const auto folder = std::filesystem::temp_directory_path() / "gossamer_conv_plan_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const PackedWeight weight = filters(0.95);
  PlanOptions options = uncached();
  options.cache = folder.string();
  const Plan first = planned(weight, dense_that_takes(3e-3), options);
  const Plan second = planned(weight, dense_that_takes(3e-3), options);
  EXPECT_FALSE(first.from_cache);
  EXPECT_TRUE(second.from_cache);
  EXPECT_EQ(first.choices[5].kernel, second.choices[5].kernel);
  Conv2dLayer strided = padded_layer();
  strided.stride_w = 2;
  const Plan other =
      plan_conv2d(weight, strided, {}, host_machine(), dense_that_takes(3e-3), options);
  EXPECT_FALSE(other.from_cache);
  std::filesystem::remove_all(folder);
}

TEST(ChooseConv2d, TakesTheHeadersRowAndElseTheWidest) {
  PackedWeight weight = filters(0.9, Layout::kKcsr128);
  const Conv2dKernel* widest = choose_conv2d_kernel(weight, 100);
  ASSERT_NE(widest, nullptr);
  EXPECT_EQ(widest, plan::widest_conv2d_row(Layout::kKcsr128, DType::kFloat32));
  for (const Conv2dKernel& row : conv2d_kernels()) {
    EXPECT_TRUE(!host_machine().has(row.needs) || row.lanes <= widest->lanes ||
                row.layout != Layout::kKcsr128);
  }
  set_plan(weight, "generic_conv2d_kcsr128_f32");
  EXPECT_EQ(choose_conv2d_kernel(weight, 100)->name, "generic_conv2d_kcsr128_f32");
  set_plan(weight, "generic_conv2d_kcsr64_f32");  // of another layout
  EXPECT_EQ(choose_conv2d_kernel(weight, 100), widest);
  set_plan(weight, kDenseKernel);
  EXPECT_EQ(choose_conv2d_kernel(weight, 100), nullptr);
}

TEST(ChooseConv2d, RefusesADtypeWithoutKernels) {
  const PackedWeight weight = filters(0.9, Layout::kKcsr128, DType::kFloat64);
  EXPECT_NE(
      message_of([&] { choose_conv2d_kernel(weight, 1); }).find("float32 and int8 are accepted"),
      std::string::npos);
}

TEST(RunConv2d, ComputesEveryLayoutAndAPlannedDense) {
  Random random(5);
  Conv2dShape s;
  s.images = 2;
  s.in_channels = s.out_channels = kChannels;
  s.height = s.width = 6;
  s.kernel_h = s.kernel_w = 3;
  s.pad_top = s.pad_left = 1;
  const Matrix x = random_matrix(random, DType::kFloat32, 1, 2 * kChannels * 36);
  const auto run = [&](const PackedView& weight, void (*function)(const Conv2dArgs&)) {
    std::vector<float> y(static_cast<std::size_t>(s.pixels() * kChannels));
    Conv2dArgs args{.weight = weight, .shape = s};
    args.x = x.bytes.data();
    args.x_strides = ImageStrides::planar(kChannels, 6, 6);
    args.y = y.data();
    args.y_strides = ImageStrides::planar(kChannels, s.out_height(), s.out_width());
    function(args);
    return y;
  };
  const std::vector<float> expected = run(filters(0.8), reference_conv2d);
  for (const Layout layout :
       {Layout::kBitmask, Layout::kKcsr64, Layout::kKcsr128, Layout::kKcsr256}) {
    PackedWeight weight = filters(0.8, layout);
    for (const std::string_view kernel : {std::string_view(), kDenseKernel}) {
      set_plan(weight, kernel);
      const std::vector<float> y = run(weight, run_conv2d);
      for (std::size_t i = 0; i < y.size(); ++i) {
        // At most 144 products of normal numbers, each sum within 146·2^-24 of Σ|x·w| < 500.
        ASSERT_NEAR(y[i], expected[i], 146 * 0x1p-24 * 500) << layout_name(layout) << " at " << i;
      }
    }
  }
}

TEST(RunConv2d, NamesNullPointers) {
  const PackedWeight weight = filters(0.8, Layout::kKcsr128);
  Conv2dArgs args{.weight = weight, .shape = {}};
  args.shape.images = 1;
  args.shape.in_channels = args.shape.out_channels = kChannels;
  args.shape.height = args.shape.width = args.shape.kernel_h = args.shape.kernel_w = 3;
  args.x_strides = ImageStrides::planar(kChannels, 3, 3);
  args.y_strides = ImageStrides::planar(kChannels, 1, 1);
  EXPECT_NE(message_of([&] { run_conv2d(args); }).find("x is null"), std::string::npos);
}

}  // namespace
}  // namespace gossamer::test
