// SPDX-License-Identifier: BSD-3-Clause
// The kernel table has a fast row for each pattern, dtype, regime and instruction set that users
// are promised one for, and the cost model prefers it to the portable rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/conv.h"
#include "gossamer/linear.h"
#include "testing.h"

namespace gossamer::test {
namespace {

struct Level {
  const char* name;
  std::uint32_t isa;
};

// AVX-512 without VNNI or BF16 is what the oldest machines have: bfloat16 is stored and float32
// computed there, int8 runs AVX2's rows.
constexpr Level kLevels[] = {
    {"avx2", kIsaAvx2},
    {"avx512", kIsaAvx2 | kIsaAvx512},
    {"avx512_vnni", kIsaAvx2 | kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni},
};

std::vector<Pattern> promised_patterns() {
  return {Pattern::unstructured(0.5), Pattern::unstructured(0.9),  Pattern::nm(2, 4),
          Pattern::nm(1, 4),          Pattern::nm(4, 8),           Pattern::nm(8, 16),
          Pattern::block(1, 2, 0.7),  Pattern::block(1, 4, 0.7),   Pattern::block(4, 1, 0.7),
          Pattern::block(16, 1, 0.7), Pattern::block(32, 32, 0.7), Pattern::block(64, 64, 0.7),
          Pattern::fan_in(0.9)};
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8};

bool contains(std::string_view name, std::string_view part) {
  return name.find(part) != std::string_view::npos;
}

bool is_portable(std::string_view name) { return name.starts_with("generic_"); }

/// Kernels for a few tokens stream the weight, those for many work in blocks; 2:4 in row pairs is
/// one kernel for both.
bool is_of_regime(std::string_view name, std::int64_t tokens) {
  if (contains(name, "_nm24_")) return true;
  const bool is_few = contains(name, "_linear_") || contains(name, "_spmv_");
  return is_few == (tokens <= 8);
}

TEST(KernelCells, EachHasAFastRowThatTheModelPrefers) {
  for (const Level& level : kLevels) {
    Machine machine = host_machine();
    machine.isa = level.isa;
    for (const Pattern& pattern : promised_patterns()) {
      for (const DType dtype : kDTypes) {
        LinearDesc desc;
        desc.out = 1024;
        desc.in = 1024;
        desc.pattern = pattern;
        desc.density = pattern.kind == Pattern::Kind::kNm
                           ? static_cast<double>(pattern.n) / static_cast<double>(pattern.m)
                           : 1.0 - pattern.sparsity;
        desc.weight_dtype = dtype;
        desc.activation_dtype = dtype;
        desc.epilogue.quantized = dtype == DType::kInt8;
        for (const std::int64_t tokens : {1, 8, 9, 128, 512}) {
          const std::string cell = std::string(level.name) + " " + pattern.to_string() + " " +
                                   std::string(dtype_name(dtype)) + " " + std::to_string(tokens) +
                                   " tokens";
          bool has_fast = false;
          const LinearKernel* best = nullptr;
          double least = std::numeric_limits<double>::infinity();
          for (const LinearKernel& row : linear_kernels()) {
            if (!layout_holds(row.layout, pattern) || !why_not(row, desc, machine).empty())
              continue;
            has_fast = has_fast || (!is_portable(row.name) && is_of_regime(row.name, tokens));
            const double seconds = row.seconds(desc, machine, tokens, 1);
            if (seconds < least) {
              least = seconds;
              best = &row;
            }
          }
          EXPECT_TRUE(has_fast) << cell;
          ASSERT_NE(best, nullptr) << cell;
          EXPECT_FALSE(is_portable(best->name)) << cell << ": " << best->name;
        }
      }
    }
  }
}

// A convolution's weight of any pattern is K-blocked or, in int8, a bitmask.
TEST(KernelCells, ConvolutionsHaveAFastRow) {
  for (const Level& level : kLevels) {
    for (const DType dtype : {DType::kFloat32, DType::kInt8}) {
      const auto rows = conv2d_kernels();
      EXPECT_TRUE(std::any_of(rows.begin(), rows.end(),
                              [&](const Conv2dKernel& row) {
                                return row.dtype == dtype && !is_portable(row.name) &&
                                       (row.needs & ~level.isa) == 0;
                              }))
          << level.name << " " << dtype_name(dtype);
    }
  }
}

}  // namespace
}  // namespace gossamer::test
