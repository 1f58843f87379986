// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer {

/// How a kernel gets its threads: the caller lends them. Behind the torch door this is torch's own
/// pool, in C++ programs OpenMP (gossamer/openmp.h) or whatever they have. Default: serial.
struct ParallelFor {
  using Body = void (*)(const void* context, std::int64_t begin, std::int64_t end);
  using Run = void (*)(void* self, std::int64_t count, Body body, const void* context);

  /// Covers [0, count) with calls body(context, begin, end), at once or in turn, and returns when
  /// all have ended.
  Run run = nullptr;
  void* self = nullptr;
  int threads = 1;  ///< how many bodies may run at once; kernels cut their work accordingly
};

/// Calls body(begin, end) over [0, count) with the caller's threads. The body must not throw.
template <typename F>
void parallel_for(const ParallelFor& pool, std::int64_t count, const F& body) {
  if (count <= 0) return;
  if (pool.run == nullptr || pool.threads <= 1 || count == 1) {
    body(std::int64_t{0}, count);
    return;
  }
  pool.run(
      pool.self, count,
      [](const void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      &body);
}

}  // namespace gossamer
