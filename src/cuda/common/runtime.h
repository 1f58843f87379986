// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <string>
#include <string_view>

#include "gossamer/error.h"

// What every launcher needs of the CUDA runtime.
namespace gossamer::cuda {

/// More devices than any machine has; tables indexed by device have this many entries.
inline constexpr int kMaxDevices = 64;

/// Throws with CUDA's own words; `what` names the call.
inline void check(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::kUnsupported, std::string(what) + ": " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

/// A number of each device that is slow to find out and never changes; 0 where nobody asked yet.
/// Two threads may both find it out, with the same result.
class PerDevice {
 public:
  template <typename F>
  int get(int device, const F& find) {
    std::atomic<int>& value = values_[static_cast<std::size_t>(device)];
    if (const int known = value.load(std::memory_order_acquire); known != 0) return known;
    const int found = find();
    value.store(found, std::memory_order_release);
    return found;
  }

 private:
  std::array<std::atomic<int>, kMaxDevices> values_{};
};

}  // namespace gossamer::cuda
