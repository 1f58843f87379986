// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/common/device_info.h"

#include <cuda_runtime.h>

#include <array>
#include <mutex>
#include <stdexcept>

#include "cuda/common/runtime.h"

namespace gossamer::cuda {
namespace {

/// Of the memory's nominal rate, what a kernel that only reads reaches (H100 and H200, 2026).
constexpr double kReachableRate = 0.9;

int attribute(cudaDeviceAttr name, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, index), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status != cudaSuccess) {
    throw std::runtime_error("CUDA device " + std::to_string(index) + ": " +
                             cudaGetErrorString(status));
  }
  DeviceInfo info;
  info.index = index;
  info.name = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.l2_bytes = properties.l2CacheSize;
  info.shared_memory_per_block_bytes = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
  // Kilohertz, two transfers a clock, and bits.
  info.memory_bytes_per_second = kReachableRate * 2e3 / 8 *
                                 attribute(cudaDevAttrMemoryClockRate, index) *
                                 attribute(cudaDevAttrGlobalMemoryBusWidth, index);
  return info;
}

const DeviceInfo& known_device(int index) {
  static std::array<DeviceInfo, kMaxDevices> devices;
  static std::array<std::once_flag, kMaxDevices> asked;
  const auto i = static_cast<std::size_t>(index);
  std::call_once(asked.at(i), [&] { devices[i] = device_info(index); });
  return devices[i];
}

}  // namespace gossamer::cuda
