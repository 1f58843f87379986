// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/quantize.h"

#include <algorithm>

#include "cpu/quantize_task.h"
#include "gossamer/machine.h"

namespace gossamer {
namespace {

#include "cpu/quantize.inl"

using Function = float (*)(const float* x, std::int64_t count, std::int8_t* q);

Function best_function() {
#if defined(__x86_64__)
  if (host_machine().has(kIsaAvx512)) return cpu::avx512_quantize;
  if (host_machine().has(kIsaAvx2)) return cpu::avx2_quantize;
#endif
  return quantize;
}

}  // namespace

void quantize_tokens(const QuantizeArgs& args) {
  constexpr std::int64_t kMinInputsPerThread = 32768;  // below, waking a thread costs more
  static const Function function = best_function();
  if (args.tokens == 0) return;
  const std::int64_t parts =
      std::clamp(args.tokens * args.in / kMinInputsPerThread, std::int64_t{1},
                 std::min(args.tokens, std::int64_t{std::max(args.parallel.threads, 1)}));
  parallel_for(args.parallel, parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = args.tokens * begin / parts; t < args.tokens * end / parts; ++t) {
      args.scale[t] = function(args.x + t * args.x_stride, args.in, args.q + t * args.in);
    }
  });
}

}  // namespace gossamer
