// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/transposable.h"

#include "gossamer/machine.h"

namespace gossamer::cpu {
namespace {

using Function = bool (*)(const TransposableTask& task);

Function best_function() {
#if defined(__x86_64__)
  if (host_machine().has(kIsaAvx2)) return avx2_transposable_24;
#endif
  return generic_transposable_24;
}

}  // namespace

bool transposable_24(const TransposableTask& task) {
  static const Function function = best_function();
  return function(task);
}

}  // namespace gossamer::cpu
