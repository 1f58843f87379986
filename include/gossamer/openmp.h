// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <omp.h>

#include <algorithm>

#include "gossamer/parallel.h"

namespace gossamer {

/// A ParallelFor on the OpenMP of the including program (compile it with -fopenmp). The library
/// itself links no thread pool, so that a process never ends up with two.
inline ParallelFor openmp_parallel_for(int threads = omp_get_max_threads()) {
  ParallelFor pool;
  pool.threads = std::max(threads, 1);
  pool.self = nullptr;
  pool.run = [](void*, std::int64_t count, ParallelFor::Body body, const void* context) {
#pragma omp parallel
    {
      const std::int64_t part = omp_get_thread_num();
      const std::int64_t parts = omp_get_num_threads();
      const std::int64_t begin = count * part / parts;
      const std::int64_t end = count * (part + 1) / parts;
      if (begin < end) body(context, begin, end);
    }
  };
  return pool;
}

}  // namespace gossamer
