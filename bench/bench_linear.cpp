// SPDX-License-Identifier: BSD-3-Clause
// Times every row of the kernel table that this machine can run, without PyTorch: for work on a
// kernel. What is claimed to users is measured beside its peers by `python -m gossamer.bench`.
//
//   build/test/bench/bench_linear --benchmark_filter='avx2_.*:0.9/1024/tokens:256/'
//   build/test/bench/bench_linear --benchmark_filter='read_memory|linear_.*:0.5/4096_from_memory'
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
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
    if (dtype == DType::kInt8) {
      // A kept value stays one: it is not rounded to zero.
      const float scaled = std::clamp(32.0f * values[i], -127.0f, 127.0f);
      const float whole = scaled + std::copysign(values[i] != 0.0f ? 0.99f : 0.0f, scaled);
      detail::store_raw(bytes.data() + i, static_cast<std::int8_t>(whole));
    } else {
      detail::store_as<float>(dtype, bytes.data(), static_cast<std::int64_t>(i), values[i]);
    }
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

/// Reads 256 MB with all threads: what kernels for few tokens are measured against.
void read_memory(benchmark::State& state) {
  constexpr std::int64_t kWords = std::int64_t{1} << 25;
  const std::vector<std::uint64_t> words(kWords, 1);
  const int threads = static_cast<int>(state.range(0));
  const ParallelFor parallel = openmp_parallel_for(threads);
  for (auto _ : state) {
    parallel_for(parallel, threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) {
        std::uint64_t sum = 0;
        const std::int64_t last = kWords * (part + 1) / threads;
        // One word of a cache line: nothing but memory takes time.
        for (std::int64_t i = kWords * part / threads; i < last; i += 8) {
          sum += words[static_cast<std::size_t>(i)];
        }
        benchmark::DoNotOptimize(sum);
      }
    });
  }
  state.SetBytesProcessed(state.iterations() * kWords * 8);
}

/// Copies of a weight, as many as are needed that none is in a cache when it is used again.
std::vector<PackedWeight> copies_of(const PackedWeight& weight, bool from_memory) {
  std::vector<PackedWeight> copies{weight};
  if (!from_memory) return copies;
  const std::int64_t wanted = 4 * std::max<std::int64_t>(host_machine().l3_bytes, 1 << 25);
  while (static_cast<std::int64_t>(copies.size()) * weight.size_bytes() < wanted) {
    copies.push_back(convert(weight, weight.view().layout()));
  }
  return copies;
}

void run_kernel(benchmark::State& state, const LinearKernel& kernel, const Pattern& pattern,
                std::int64_t size, bool from_memory) {
  const std::int64_t tokens = state.range(0);
  const std::vector<PackedWeight> weights =
      copies_of(random_weight(kernel, pattern, size, size), from_memory);
  const std::vector<std::byte> x =
      elements_of(random_normal(tokens * size, 2), kernel.activation_dtype);
  std::vector<std::byte> y(static_cast<std::size_t>(tokens * size) *
                           sizeof(double));  // of any dtype
  const std::vector<float> scales(static_cast<std::size_t>(std::max(tokens, size)), 0.01f);
  LinearArgs args{.weight = weights.front()};
  args.tokens = tokens;
  args.x = x.data();
  args.x_stride = size;
  args.y = y.data();
  args.y_stride = size;
  if (kernel.activation_dtype == DType::kInt8) {
    args.x_scale = scales.data();
    args.weight_scale = scales.data();
  }
  args.parallel = openmp_parallel_for(static_cast<int>(state.range(1)));
  std::size_t next = 0;
  for (auto _ : state) {
    args.weight = weights[next++ % weights.size()];
    kernel.run(args);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  const double flops = 2.0 * static_cast<double>(tokens * size * size);
  state.counters["dense_flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  state.SetBytesProcessed(state.iterations() * weights.front().size_bytes());
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
  const int cores = host_machine().cores;
  benchmark::RegisterBenchmark("read_memory", read_memory)
      ->ArgName("threads")
      ->Arg(1)
      ->Arg(cores)
      ->UseRealTime();
  for (const LinearKernel& kernel : linear_kernels()) {
    for (const Pattern& pattern : patterns_of(kernel.layout)) {
      if (!computes(kernel, pattern)) continue;
      const std::string name = std::string(kernel.name) + "/" + pattern.to_string();
      const auto add = [&](const char* where, std::int64_t size, bool from_memory,
                           const std::vector<std::int64_t>& tokens) {
        benchmark::RegisterBenchmark((name + where).c_str(),
                                     [&kernel, pattern, size, from_memory](auto& state) {
                                       run_kernel(state, kernel, pattern, size, from_memory);
                                     })
            ->ArgNames({"tokens", "threads"})
            ->ArgsProduct({tokens, {1, cores}})
            ->UseRealTime();
      };
      add("/1024", 1024, false, {1, 8, 32, 256});
      add("/4096_from_memory", 4096, true, {1, 8});
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
