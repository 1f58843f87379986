// SPDX-License-Identifier: BSD-3-Clause
// Every row of the kernel table against plain loops in float64. A new row is tested because it
// exists.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "cpu/tile_blocks.h"
#include "cpu/tile_rows.h"
#include "gossamer/linear.h"
#include "kernel_call.h"
#include "model_tiles.h"
#include "testing.h"

namespace gossamer::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Patterns that the layout of a kernel holds.
std::vector<Pattern> layout_patterns(const LinearKernel& kernel) {
  switch (kernel.layout) {
    case Layout::kNm:
      return {Pattern::nm(2, 4), Pattern::nm(1, 4), Pattern::nm(8, 16)};
    case Layout::kNm24Pairs:
    case Layout::kNm24Tiles:
      return {Pattern::nm(2, 4)};
    case Layout::kBsr:
      return {Pattern::block(4, 4, 0.5),  Pattern::block(1, 2, 0.5),   Pattern::block(1, 4, 0.5),
              Pattern::block(6, 32, 0.4), Pattern::block(32, 2, 0.7),  Pattern::block(4, 1, 0.6),
              Pattern::block(16, 1, 0.7), Pattern::block(32, 32, 0.5), Pattern::block(16, 64, 0.5),
              Pattern::block(64, 64, 0.4)};
    case Layout::kFanIn:
      return {Pattern::fan_in(0.75), Pattern::fan_in(0.0)};
    default:
      return {Pattern::unstructured(0.0), Pattern::unstructured(0.5), Pattern::unstructured(0.9),
              Pattern::unstructured(1.0)};
  }
}

/// And that the kernel does not refuse.
std::vector<Pattern> patterns_of(const LinearKernel& kernel) {
  std::vector<Pattern> patterns = layout_patterns(kernel);
  std::erase_if(patterns, [&](const Pattern& pattern) {
    LinearDesc desc;
    desc.pattern = pattern;
    desc.weight_dtype = kernel.weight_dtype;
    return kernel.refuses != nullptr && !kernel.refuses(desc).empty();
  });
  return patterns;
}

class KernelTest : public testing::TestWithParam<const LinearKernel*> {
 protected:
  void SetUp() override {
    if (!host_machine().has(GetParam()->needs)) {
      GTEST_SKIP() << GetParam()->name << " needs instruction sets this machine does not have";
    }
  }

  const LinearKernel& kernel() const { return *GetParam(); }

  void check(const Case& c) {
    Call run(kernel(), c, weight_for(c), random_);
    run.call();
    run.check();
  }

  /// The last weight where it fits, else a new one.
  const Weight& weight_for(const Case& c) {
    if (!weight_ || !weight_->fits(c)) weight_.emplace(kernel(), c, random_);
    return *weight_;
  }

  Random random_{20261123};

 private:
  std::optional<Weight> weight_;
};

TEST_P(KernelTest, AgreesAtEveryTokenCount) {
  for (const Pattern& pattern : patterns_of(kernel())) {
    for (const std::int64_t tokens :
         {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 63, 64, 65, 100, 129}) {
      check({.pattern = pattern, .out = 19, .in = 70, .tokens = tokens, .bias = tokens % 2 == 0});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(KernelTest, AgreesAtEveryShape) {
  for (const Pattern& pattern : patterns_of(kernel())) {
    for (const std::int64_t out : {1, 2, 7, 8, 33}) {
      for (const std::int64_t in : {1, 3, 4, 31, 64, 65, 127, 257}) {
        for (const std::int64_t tokens : {1, 4, 19}) {
          check({.pattern = pattern, .out = out, .in = in, .tokens = tokens, .bias = out % 2 == 1});
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(KernelTest, AgreesWithManyBlocksOfRowsAndInputs) {
  const Pattern pattern = patterns_of(kernel()).front();
  check({.pattern = pattern, .out = 1030, .in = 300, .tokens = 130, .bias = true});
  check({.pattern = pattern, .out = 70, .in = 2311, .tokens = 21, .residual = true});
}

TEST_P(KernelTest, AgreesWithEveryEpilogueStrideBatchAndThreadCount) {
  const Pattern pattern = patterns_of(kernel()).back();
  for (const std::int64_t batch : {1, 3}) {
    for (const bool bias : {false, true}) {
      for (const bool residual : {false, true}) {
        for (const Activation activation : kActivations) {
          for (const int threads : {1, 4}) {
            for (const std::int64_t tokens : {1, 6, 70}) {
              check({.pattern = pattern,
                     .batch = batch,
                     .out = 21,
                     .in = 100,
                     .tokens = tokens,
                     .bias = bias,
                     .residual = residual,
                     .activation = activation,
                     .padding = threads - 1,
                     .threads = threads});
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

// One weight of 1 a row: the result is the activation of an input, over the range of the dtype.
TEST_P(KernelTest, ActivationsAreRightOverTheWholeRange) {
  constexpr std::int64_t kIn = 16;
  constexpr std::int64_t kOut = 16;
  std::vector<double> inputs{0.0, 1e-30, 1e-6, 87.2, 87.4, 88.2, 88.4, 100.0, 1e4, 6e4};
  for (int i = 1; i <= 200; ++i) inputs.push_back(i * 0.07);
  Matrix weight = zeros(kernel().weight_dtype, kOut, kIn);
  for (std::int64_t r = 0; r < kOut; ++r) set_element(weight, r * kIn, 1.0);
  const auto patterns = patterns_of(kernel());
  Pattern roomy = kernel().layout == Layout::kFanIn ? patterns.back() : patterns.front();
  if (kernel().layout == Layout::kBsr) roomy.sparsity = 0.0;  // one block may be all there is
  const PackedWeight packed = pack_matrix(weight, roomy, kernel().layout);
  const DType dtype = result_dtype(kernel());
  const bool quantized = kernel().activation_dtype == DType::kInt8;
  const auto tokens = static_cast<std::int64_t>(2 * inputs.size());
  Matrix x = zeros(kernel().activation_dtype, tokens, kIn);
  Matrix x_scale = zeros(DType::kFloat32, 1, tokens);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double size = inputs[static_cast<std::size_t>(t / 2)];
    const double sign = t % 2 == 0 ? 1.0 : -1.0;
    set_element(x, t * kIn, quantized ? sign : sign * size);
    set_element(x_scale, t, size);
  }
  for (const Activation activation : kActivations) {
    Matrix y = zeros(dtype, tokens, kOut);
    LinearArgs args{.weight = packed};
    args.tokens = tokens;
    args.x = x.bytes.data();
    args.x_stride = kIn;
    args.y = y.bytes.data();
    args.y_stride = kOut;
    args.activation = activation;
    if (quantized) args.x_scale = x_scale.as<float>();
    kernel().run(args);
    for (std::int64_t i = 0; i < tokens * kOut; ++i) {
      const double scale = quantized ? element(x_scale, i / kOut) : 1.0;
      const double input = element(x, i / kOut * kIn) * scale;
      const double exact = activated(activation, input);
      if (dtype == DType::kFloat16 && exact >= 65520.0) {  // squared ReLU leaves the range
        ASSERT_TRUE(std::isinf(element(y, i))) << kernel().name << ": " << input;
        continue;
      }
      const double error = activation_error(activation, input, 0.0, compute_roundoff(dtype));
      ASSERT_LE(std::fabs(element(y, i) - exact),
                error + unit_roundoff(dtype) * (std::fabs(exact) + error) + 0x1p-24)
          << kernel().name << ": activation " << static_cast<int>(activation) << " of " << input;
    }
  }
}

TEST_P(KernelTest, ThreadsShareLargeWork) {
  const Pattern pattern = patterns_of(kernel()).front();
  for (const int threads : {2, 3, 4}) {
    for (const std::int64_t tokens : {1, 8, 257}) {
      check({.pattern = pattern,
             .out = 515,
             .in = 260,
             .tokens = tokens,
             .bias = true,
             .threads = threads});
    }
  }
}

TEST_P(KernelTest, ResidualMayBeY) {
  for (const std::int64_t tokens : {1, 9, 65}) {
    const Case c{.pattern = patterns_of(kernel()).front(),
                 .out = 21,
                 .in = 1300,
                 .tokens = tokens,
                 .activation = Activation::kRelu,
                 .padding = 3};
    Call run(kernel(), c, weight_for(c), random_);
    run.call(true);
    run.check();
  }
}

// A pruned weight contributes nothing, whatever X holds there; a kept one passes NaN and infinity
// on.
TEST_P(KernelTest, NonFiniteInputsReachKeptPositionsOnly) {
  if (kernel().activation_dtype == DType::kInt8) GTEST_SKIP() << "int8 has neither";
  for (const Pattern& pattern : patterns_of(kernel())) {
    for (const std::int64_t tokens : {1, 3, 17, 65}) {
      for (const double poison : {kNan, kInfinity, -kInfinity}) {
        const Case c{.pattern = pattern, .out = 24, .in = 144, .tokens = tokens};
        Call run(kernel(), c, weight_for(c), random_);
        const std::int64_t column = 37;
        for (std::int64_t t = 0; t < tokens; t += 2) {
          set_element(run.x(), run.x_index(0, t, column), poison);
        }
        run.call();
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t r = 0; r < c.out; ++r) {
            const bool kept =
                run.mask().bytes[static_cast<std::size_t>(r * c.in + column)] != std::byte{0};
            ASSERT_EQ(std::isfinite(run.actual(0, t, r)), !(kept && t % 2 == 0))
                << kernel().name << ": " << c.to_string() << " token " << t << " row " << r;
          }
        }
      }
    }
  }
}

// A zero that a mask keeps is a weight like any other: zero times NaN is NaN.
TEST_P(KernelTest, KeptZerosPassNanOn) {
  if (kernel().activation_dtype == DType::kInt8) GTEST_SKIP() << "int8 has no NaN";
  const bool any_mask = kernel().layout == Layout::kBitmask || !is_format(kernel().layout);
  if (!any_mask || kernel().layout == Layout::kNm24Pairs) {
    GTEST_SKIP() << layout_name(kernel().layout) << " keeps what its pattern says";
  }
  constexpr std::int64_t kOut = 5;
  constexpr std::int64_t kIn = 70;
  constexpr std::int64_t kColumn = 33;  // row r keeps it as a zero where r is even
  Matrix weight = zeros(kernel().weight_dtype, kOut, kIn);
  Matrix mask = zeros(DType::kBool, kOut, kIn);
  for (std::int64_t r = 0; r < kOut; ++r) {
    for (std::int64_t k = r % 3; k < kIn; k += 3) {
      if (k == kColumn) continue;
      mask.bytes[static_cast<std::size_t>(r * kIn + k)] = std::byte{1};
      set_element(weight, r * kIn + k, 1.0);
    }
    if (r % 2 == 0) mask.bytes[static_cast<std::size_t>(r * kIn + kColumn)] = std::byte{1};
  }
  const ConstMatrixView mask_view = mask.const_view();
  const PackedWeight packed =
      pack(weight.const_view(), &mask_view, Pattern::unstructured(0.0), kernel().layout);
  for (const std::int64_t tokens : {1, 4, 33}) {
    Matrix x = random_matrix(random_, kernel().activation_dtype, tokens, kIn);
    for (std::int64_t t = 0; t < tokens; ++t) set_element(x, t * kIn + kColumn, kNan);
    Matrix y = zeros(kernel().activation_dtype, tokens, kOut);
    LinearArgs args{.weight = packed};
    args.tokens = tokens;
    args.x = x.bytes.data();
    args.x_stride = kIn;
    args.y = y.bytes.data();
    args.y_stride = kOut;
    kernel().run(args);
    for (std::int64_t i = 0; i < tokens * kOut; ++i) {
      EXPECT_EQ(std::isnan(element(y, i)), i % kOut % 2 == 0)
          << kernel().name << " token " << i / kOut << " row " << i % kOut;
    }
  }
}

TEST_P(KernelTest, ReluKeepsNan) {
  if (kernel().activation_dtype == DType::kInt8) GTEST_SKIP() << "int8 has no NaN";
  const Case c{.pattern = patterns_of(kernel()).front(),
               .out = 9,
               .in = 64,
               .tokens = 9,
               .activation = Activation::kRelu};
  Call run(kernel(), c, weight_for(c), random_);
  for (std::int64_t k = 0; k < c.in; ++k) set_element(run.x(), run.x_index(0, 4, k), kNan);
  run.call();
  for (std::int64_t r = 0; r < c.out; ++r) {
    bool any_kept = false;
    for (std::int64_t k = 0; k < c.in; ++k) {
      any_kept |= run.mask().bytes[static_cast<std::size_t>(r * c.in + k)] != std::byte{0};
    }
    EXPECT_EQ(std::isnan(run.actual(0, 4, r)), any_kept) << kernel().name;
    EXPECT_GE(run.actual(0, 3, r), 0.0);
  }
}

#if defined(__x86_64__)
/// The drivers of AMX on a model of the tile registers, rows like any other.
void register_model_tiles() {
  using namespace cpu;
  using enum DType;
  constexpr std::uint32_t kNeeds = kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni;
  constexpr auto count = model_count_kept;
  add_bitmask_tile_row<model_bitmask_bf16, count, 0, 3>("model_linear_bitmask_bf16", kNeeds,
                                                        kBFloat16);
  add_bitmask_tile_row<model_bitmask_bf16, count, 128, 8>("model_spmm_bitmask128_bf16_nv8", kNeeds,
                                                          kBFloat16);
  add_bitmask_tile_row<model_bitmask_bf16, count, 256, 4>("model_spmm_bitmask256_bf16_nv4", kNeeds,
                                                          kBFloat16);
  add_bitmask_tile_row<model_bitmask_int8, count, 0, 3>("model_linear_bitmask_int8", kNeeds, kInt8);
  add_bitmask_tile_row<model_bitmask_int8, count, 256, 8>("model_spmm_bitmask256_int8_nv8", kNeeds,
                                                          kInt8);
  add_bitmask_tile_row<model_overlapped_bf16, count, 0, 3>("model_linear_bitmask_bf16_overlap",
                                                           kNeeds, kBFloat16);
  add_bitmask_tile_row<model_overlapped_bf16, count, 256, 8>("model_spmm_bitmask256_bf16_overlap",
                                                             kNeeds, kBFloat16);
  add_bitmask_tile_row<model_overlapped_int8, count, 0, 3>("model_linear_bitmask_int8_overlap",
                                                           kNeeds, kInt8);
  add_block_tile_row<model_blocks_bf16, 0, 6>("model_spmm_bsr_bf16", kNeeds, kBFloat16);
  add_block_tile_row<model_blocks_bf16, 256, 4>("model_spmm_bsr256_bf16", kNeeds, kBFloat16);
  add_block_tile_row<model_blocks_int8, 0, 6>("model_spmm_bsr_int8", kNeeds, kInt8);
  add_block_tile_row<model_blocks_int8, 512, 4>("model_spmm_bsr512_int8", kNeeds, kInt8);
  add_tile_blocks_row<model_linear_bsr_bf16>("model_linear_bsr_bf16", kNeeds, kBFloat16);
  add_tile_blocks_row<model_linear_bsr_int8>("model_linear_bsr_int8", kNeeds, kInt8);
}
#else
void register_model_tiles() {}
#endif

std::vector<const LinearKernel*> all_kernels() {
  static const bool once = (register_model_tiles(), true);
  static_cast<void>(once);
  std::vector<const LinearKernel*> all;
  for (const LinearKernel& kernel : linear_kernels()) all.push_back(&kernel);
  return all;
}

#if defined(__x86_64__)
// 4096 inputs of bfloat16: a pass over the weight takes 128 tokens, and 31 are left for a third.
// With 33 outputs X is read where it lies, with 300 it is copied.
TEST(TileBlocks, PassesOverManyTokensAgree) {
  all_kernels();
  const LinearKernel& kernel = *find_linear_kernel("model_linear_bsr_bf16");
  if (!host_machine().has(kernel.needs)) GTEST_SKIP() << "needs AVX-512";
  ASSERT_EQ(cpu::pass_tokens(4096 * 2), 128);
  Random random(11);
  for (const std::int64_t out : {33, 300}) {
    for (const int threads : {1, 3}) {
      const Case c{.pattern = Pattern::block(32, 32, 0.5),
                   .out = out,
                   .in = 4096,
                   .tokens = 287,
                   .bias = true,
                   .residual = true,
                   .threads = threads};
      const Weight weight(kernel, c, random);
      Call run(kernel, c, weight, random);
      run.call();
      run.check();
    }
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Table, KernelTest, testing::ValuesIn(all_kernels()),
                         [](const auto& param) { return std::string(param.param->name); });

TEST(KernelTable, HasAPortableKernelForEveryLayout) {
  for (const Layout layout : all_layouts()) {
    const DType dtype = layout == Layout::kRowQuads512 ? DType::kInt8 : DType::kFloat32;
    const auto kernels = linear_kernels();
    EXPECT_TRUE(std::any_of(kernels.begin(), kernels.end(), [&](const LinearKernel& k) {
      return k.layout == layout && k.needs == kIsaGeneric && k.weight_dtype == dtype;
    })) << layout_name(layout);
  }
}

}  // namespace
}  // namespace gossamer::test
