// SPDX-License-Identifier: BSD-3-Clause
#include "plan/dense_model.h"

#include <algorithm>

namespace gossamer::plan {
namespace {

// Typical of server processors since 2019; a model needs the ratio of two kernels, not their times.
constexpr double kCyclesPerSecond = 3.0e9;
constexpr double kCallSeconds = 2.0e-6;
constexpr double kWideEfficiency = 0.75;    // packed panels, 32 tokens and more
constexpr double kNarrowEfficiency = 0.35;  // too few tokens to reuse what is in registers
constexpr std::int64_t kWideTokens = 32;
constexpr double kL2BytesPerSecond = 60e9;       // of one core
constexpr double kL3BytesPerSecond = 25e9;       // of one core
constexpr double kMemoryBytesPerSecond = 12e9;   // of one core
constexpr double kSocketBytesPerSecond = 100e9;  // of all cores together

// Multiply-adds count two. Two vector units of the widest width each, as desktop and server cores
// have; types without arithmetic of their own are widened to float32 first. But float16: without
// instructions of its own torch 2.13 takes a plain loop (26 GFLOP/s on one core of a Zen 5).
double flops_per_cycle(const LinearDesc& desc, const Machine& machine) {
  const bool half = desc.activation_dtype == DType::kBFloat16;
  const bool bytes = desc.activation_dtype == DType::kInt8;
  if (half && machine.has(kIsaAmxBf16)) return 1024;
  if (bytes && machine.has(kIsaAmxInt8)) return 2048;
  if (half && machine.has(kIsaAvx512Bf16)) return 128;
  if (bytes && machine.has(kIsaAvx512Vnni)) return 256;
  if (desc.activation_dtype == DType::kFloat16) return machine.has(kIsaAvx512Fp16) ? 128 : 8;
  const double float32 = machine.has(kIsaAvx512) ? 64 : machine.has(kIsaAvx2) ? 32 : 8;
  return desc.activation_dtype == DType::kFloat64 ? float32 / 2 : float32;
}

double bytes_per_second(double bytes, const Machine& machine, int cores) {
  const double many = cores;
  if (bytes <= static_cast<double>(machine.l2_bytes) * many) return kL2BytesPerSecond * many;
  if (bytes <= static_cast<double>(machine.l3_bytes)) return kL3BytesPerSecond * many;
  return std::min(kMemoryBytesPerSecond * many, kSocketBytesPerSecond);
}

}  // namespace

double modelled_dense_seconds(const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                              int threads) {
  const int cores = std::clamp(threads, 1, std::max(machine.cores, 1));
  const auto batch = static_cast<double>(desc.batch);
  const auto out = static_cast<double>(desc.out);
  const auto in = static_cast<double>(desc.in);
  const auto rows = static_cast<double>(tokens);
  const double efficiency = tokens >= kWideTokens ? kWideEfficiency : kNarrowEfficiency;
  const double arithmetic =
      2.0 * batch * rows * out * in /
      (flops_per_cycle(desc, machine) * kCyclesPerSecond * efficiency * cores);
  const double bytes =
      batch * (out * in * static_cast<double>(dtype_bytes(desc.weight_dtype)) +
               rows * (out + in) * static_cast<double>(dtype_bytes(desc.activation_dtype)));
  return kCallSeconds + std::max(arithmetic, bytes / bytes_per_second(bytes, machine, cores));
}

}  // namespace gossamer::plan
