// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "gossamer/linear.h"
#include "testing.h"

// Kernels that compute nothing and take as long as a test says. They take weights of kFakeIn inputs
// only, and their cost models promise less than any real kernel's, so that the two kinds never meet
// in one choice.
namespace gossamer::test {

inline constexpr std::int64_t kFakeOut = 8;
inline constexpr std::int64_t kFakeIn = 47;

/// Seconds by token count.
using Seconds = std::function<double(std::int64_t tokens)>;

struct FakeRow {
  std::string_view name;
  Layout layout = Layout::kBitmask;
  Seconds takes = {};     ///< what a call spins for
  Seconds promises = {};  ///< what the cost model says
  int calls = 0;
};

inline std::array<FakeRow, 3>& fakes() {
  static std::array<FakeRow, 3> rows{{{.name = "fake_bitmask", .layout = Layout::kBitmask},
                                      {.name = "fake_kcsr64_slow", .layout = Layout::kKcsr64},
                                      {.name = "fake_kcsr64_fast", .layout = Layout::kKcsr64}}};
  return rows;
}

inline void spin(double seconds) {
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
         seconds) {
  }
}

inline std::string fake_refuses(const LinearDesc& desc) {
  return desc.in == kFakeIn ? "" : "a fake that only takes 47 inputs";
}

template <std::size_t kIndex>
LinearKernel fake_kernel() {
  LinearKernel kernel;
  kernel.name = fakes()[kIndex].name;
  kernel.layout = fakes()[kIndex].layout;
  kernel.refuses = fake_refuses;
  kernel.seconds = [](const LinearDesc&, const Machine&, std::int64_t tokens, int) {
    return fakes()[kIndex].promises(tokens);
  };
  kernel.run = [](const LinearArgs& args) {
    ++fakes()[kIndex].calls;
    spin(fakes()[kIndex].takes(args.tokens));
  };
  return kernel;
}

/// Registers the fakes once and gives them equal promises and times.
inline void reset_fakes() {
  static const bool registered = [] {
    register_linear_kernel(fake_kernel<0>());
    register_linear_kernel(fake_kernel<1>());
    register_linear_kernel(fake_kernel<2>());
    return true;
  }();
  (void)registered;
  for (FakeRow& row : fakes()) {
    row.takes = [](std::int64_t) { return 50e-6; };
    row.promises = [](std::int64_t) { return 1e-15; };
    row.calls = 0;
  }
}

/// A weight that the fakes take, half of it zero.
inline PackedWeight fake_weight(std::int64_t out = kFakeOut, double sparsity = 0.5) {
  Random random(7);
  const Pattern pattern = Pattern::unstructured(sparsity);
  return pack_matrix(random_sparse(random, DType::kFloat32, pattern, out, kFakeIn), pattern,
                     Layout::kBitmask);
}

/// A dense peer that spins for seconds(tokens).
inline DensePeer fake_dense(Seconds seconds) {
  DensePeer peer;
  peer.run = [seconds](std::int64_t tokens) { spin(seconds(tokens)); };
  return peer;
}

inline Seconds constant(double seconds) {
  return [seconds](std::int64_t) { return seconds; };
}

/// Options that neither read nor write a cache.
inline PlanOptions uncached() {
  PlanOptions options;
  options.cache = "off";
  return options;
}

}  // namespace gossamer::test
