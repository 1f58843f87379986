// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/quantize.h"

#include <algorithm>
#include <cmath>

#include "core/fail.h"
#include "cpu/quantize_task.h"
#include "gossamer/machine.h"

namespace gossamer {
namespace {

#include "cpu/round_all.inl"
//
#include "cpu/quantize.inl"

/// One instruction set: a token at its own scale, at a given one, and results.
struct Functions {
  float (*own)(const float* x, std::int64_t count, std::int8_t* q);
  float (*fixed)(const float* x, std::int64_t count, float scale, std::int8_t* q);
  void (*results)(const float* x, std::int64_t count, float inverse, std::int8_t* q);
};

Functions best_functions() {
#if defined(__x86_64__)
  if (host_machine().has(kIsaAvx512))
    return {cpu::avx512_quantize, cpu::avx512_quantize_at, cpu::avx512_requantize};
  if (host_machine().has(kIsaAvx2))
    return {cpu::avx2_quantize, cpu::avx2_quantize_at, cpu::avx2_requantize};
#endif
  return {quantize<round_all>, quantize_at, requantize_all};
}

const Functions& functions_here() {
  static const Functions functions = best_functions();
  return functions;
}

constexpr std::int64_t kMinInputsPerThread = 32768;  ///< below, waking a thread costs more

/// The reciprocal of a subnormal scale is infinite.
bool is_scale(float scale) { return std::isnormal(scale) && scale > 0.0f; }

}  // namespace

void quantize_tokens(const QuantizeArgs& args) {
  if (args.fixed_scale != 0.0f && !is_scale(args.fixed_scale)) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "quantize_tokens: fixed_scale is {}; a finite number above 1.2e-38 is accepted, "
                 "or 0 for a scale of each token's own",
                 args.fixed_scale);
  }
  const Functions& functions = functions_here();
  if (args.tokens == 0) return;
  const std::int64_t parts =
      std::clamp(args.tokens * args.in / kMinInputsPerThread, std::int64_t{1},
                 std::min(args.tokens, std::int64_t{std::max(args.parallel.threads, 1)}));
  parallel_for(args.parallel, parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = args.tokens * begin / parts; t < args.tokens * end / parts; ++t) {
      const float* x = args.x + t * args.x_stride;
      std::int8_t* q = args.q + t * args.in;
      args.scale[t] = args.fixed_scale > 0.0f ? functions.fixed(x, args.in, args.fixed_scale, q)
                                              : functions.own(x, args.in, q);
    }
  });
}

void requantize(const float* y, std::int64_t count, float scale, std::int8_t* q,
                const ParallelFor& parallel) {
  if (!is_scale(scale)) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "requantize: scale is {}; a finite number above 1.2e-38 is accepted", scale);
  }
  const std::int64_t parts = std::clamp(count / kMinInputsPerThread, std::int64_t{1},
                                        std::int64_t{std::max(parallel.threads, 1)});
  parallel_for(parallel, parts, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = count * begin / parts;
    functions_here().results(y + first, count * end / parts - first, 1.0f / scale, q + first);
  });
}

}  // namespace gossamer
