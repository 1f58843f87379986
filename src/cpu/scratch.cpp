// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/scratch.h"

#include <memory>
#include <new>

namespace gossamer::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(float* p) const { ::operator delete(p, kAlignment); }
};

struct Memory {
  std::unique_ptr<float, Free> data;
  std::int64_t capacity = 0;

  float* at_least(std::int64_t floats) {
    if (capacity < floats) {
      data.reset();
      capacity = 0;
      data.reset(static_cast<float*>(
          ::operator new(static_cast<std::size_t>(floats) * sizeof(float), kAlignment)));
      capacity = floats;
    }
    return data.get();
  }
};

}  // namespace

float* scratch(std::int64_t floats, Purpose purpose) {
  thread_local Memory own;
  thread_local Memory shared;
  return (purpose == Purpose::kThread ? own : shared).at_least(floats);
}

}  // namespace gossamer::cpu
