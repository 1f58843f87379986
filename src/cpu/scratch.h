// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace gossamer::cpu {

/// At least `floats` floats, 64-byte aligned, uninitialised, the calling thread's own until its
/// next call. The memory grows to the largest request and lives as long as the thread, so that
/// calls do not allocate.
inline float* scratch(std::int64_t floats) {
  constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local std::int64_t capacity = 0;
  if (capacity < floats) {
    memory.reset();
    capacity = 0;
    memory.reset(static_cast<float*>(
        ::operator new(static_cast<std::size_t>(floats) * sizeof(float), kAlignment)));
    capacity = floats;
  }
  return memory.get();
}

}  // namespace gossamer::cpu
