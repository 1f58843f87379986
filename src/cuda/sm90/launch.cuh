// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <string_view>

#include "cuda/common/epilogue_args.cuh"
#include "cuda/common/runtime.h"
#include "cuda/linear_sp24.h"

namespace gossamer::cuda::sm90 {

/// How a kernel is started. Each may begin before its predecessor in the stream has ended, and
/// waits for it where it has to.
struct LaunchShape {
  int blocks = 0;
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 1;
  cudaStream_t stream = nullptr;
};

template <typename Kernel, typename... Args>
void launch(const Kernel& kernel, const LaunchShape& shape, std::string_view name,
            const Args&... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = shape.stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, args...), name);
}

/// Lets a kernel use as much shared memory as a block may have. Once a device.
template <typename Kernel>
void allow_shared_memory(const Kernel& kernel, PerDevice& done, int device) {
  done.get(device, [&] {
    constexpr int kMost = 232448;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMost),
          "cudaFuncSetAttribute");
    return 1;
  });
}

/// Clusters of this shape that run at the same time.
template <typename Kernel>
int active_clusters(const Kernel& kernel, const LaunchShape& shape) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.cluster));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config),
        "cudaOccupancyMaxActiveClusters");
  return clusters;
}

/// The sentence with which a kernel of this folder refuses a device; empty where it runs there.
inline std::string refuse_device(const DeviceInfo& device) {
  if (device.compute_major == 9) return {};
  return "needs compute capability 9.x, " + device.name + " has " +
         std::to_string(device.compute_major) + "." + std::to_string(device.compute_minor);
}

}  // namespace gossamer::cuda::sm90
