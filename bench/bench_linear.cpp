// SPDX-License-Identifier: BSD-3-Clause
// Times every row of the kernel table that this machine can run, without PyTorch: for work on a
// kernel. What is claimed to users is measured beside its peers by `python -m gossamer.bench`.
//
//   build/test/bench/bench_linear --benchmark_filter='avx2_.*/tokens:256/sparsity:90'
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "gossamer/linear.h"
#include "gossamer/mask.h"
#include "gossamer/openmp.h"

namespace {

using namespace gossamer;

std::vector<float> random_normal(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

/// The same numbers as elements of a kernel's type.
std::vector<std::byte> elements_of(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(dtype_bytes(dtype)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    detail::store_as<float>(dtype, bytes.data(), static_cast<std::int64_t>(i), values[i]);
  }
  return bytes;
}

/// A random weight of the pattern, packed in the kernel's layout.
PackedWeight random_weight(const LinearKernel& kernel, const Pattern& pattern, std::int64_t out,
                           std::int64_t in) {
  std::vector<float> values = random_normal(out * in, 1);
  std::vector<std::uint8_t> mask(values.size());
  const MatrixView mask_view = contiguous_view(mask.data(), DType::kBool, out, in);
  const ConstMatrixView view = read_only(contiguous_view(values.data(), DType::kFloat32, out, in));
  magnitude_mask(view, pattern, Scope::kTensor, mask_view);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = mask[i] != 0 ? values[i] : 0.0f;
  const std::vector<std::byte> elements = elements_of(values, kernel.weight_dtype);
  return pack(contiguous_view(elements.data(), kernel.weight_dtype, out, in), nullptr, pattern,
              kernel.layout);
}

void run_kernel(benchmark::State& state, const LinearKernel& kernel, const Pattern& pattern) {
  constexpr std::int64_t kOut = 1024;
  constexpr std::int64_t kIn = 1024;
  const std::int64_t tokens = state.range(0);
  const PackedWeight weight = random_weight(kernel, pattern, kOut, kIn);
  const std::vector<std::byte> x =
      elements_of(random_normal(tokens * kIn, 2), kernel.activation_dtype);
  std::vector<std::byte> y(
      static_cast<std::size_t>(tokens * kOut * dtype_bytes(kernel.activation_dtype)));
  LinearArgs args{.weight = weight};
  args.tokens = tokens;
  args.x = x.data();
  args.x_stride = kIn;
  args.y = y.data();
  args.y_stride = kOut;
  args.parallel = openmp_parallel_for(static_cast<int>(state.range(1)));
  for (auto _ : state) {
    kernel.run(args);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  const double flops = 2.0 * static_cast<double>(tokens * kOut * kIn);
  state.counters["dense_flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = static_cast<double>(weight.size_bytes());
}

std::vector<Pattern> patterns_of(Layout layout) {
  if (layout == Layout::kNm || layout == Layout::kNm24Pairs) return {Pattern::nm(2, 4)};
  if (layout == Layout::kBsr) {
    return {Pattern::block(1, 2, 0.7), Pattern::block(4, 1, 0.7), Pattern::block(32, 32, 0.5),
            Pattern::block(32, 32, 0.8)};
  }
  if (layout == Layout::kFanIn) return {Pattern::fan_in(0.9)};
  return {Pattern::unstructured(0.5), Pattern::unstructured(0.7), Pattern::unstructured(0.9),
          Pattern::unstructured(0.95)};
}

bool computes(const LinearKernel& kernel, const Pattern& pattern) {
  LinearDesc desc;
  desc.pattern = pattern;
  desc.weight_dtype = kernel.weight_dtype;
  desc.activation_dtype = kernel.activation_dtype;
  return why_not(kernel, desc, host_machine()).empty();
}

}  // namespace

int main(int argc, char** argv) {
  for (const LinearKernel& kernel : linear_kernels()) {
    for (const Pattern& pattern : patterns_of(kernel.layout)) {
      if (!computes(kernel, pattern)) continue;
      const std::string name = std::string(kernel.name) + "/" + pattern.to_string();
      benchmark::RegisterBenchmark(
          name.c_str(),
          [&kernel, pattern](benchmark::State& state) { run_kernel(state, kernel, pattern); })
          ->ArgNames({"tokens", "threads"})
          ->ArgsProduct({{1, 8, 32, 256}, {1, host_machine().cores}})
          ->UseRealTime();
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
