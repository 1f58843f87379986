// SPDX-License-Identifier: BSD-3-Clause
#include "cli/threads.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace gossamer::cli {

ParallelFor machine_threads() {
  ParallelFor pool;
  pool.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  pool.run = [](void*, std::int64_t count, ParallelFor::Body body, const void* context) {
    const std::int64_t parts =
        std::min<std::int64_t>(count, std::max(1u, std::thread::hardware_concurrency()));
    std::vector<std::jthread> others;
    others.reserve(static_cast<std::size_t>(parts - 1));
    for (std::int64_t part = 1; part < parts; ++part) {
      others.emplace_back(body, context, count * part / parts, count * (part + 1) / parts);
    }
    body(context, 0, count / parts);
  };
  return pool;
}

}  // namespace gossamer::cli
