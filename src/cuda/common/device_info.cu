// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/common/device_info.h"

#include <cuda_runtime.h>

#include <stdexcept>

namespace gossamer::cuda {

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status != cudaSuccess) {
    throw std::runtime_error("CUDA device " + std::to_string(index) + ": " +
                             cudaGetErrorString(status));
  }
  DeviceInfo info;
  info.name = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.l2_bytes = properties.l2CacheSize;
  info.shared_memory_per_block_bytes = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
  return info;
}

}  // namespace gossamer::cuda
