// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/transfer.h"

#include <cuda_runtime.h>

#include "cuda/common/runtime.h"

namespace gossamer::cuda {
namespace {

__global__ void nothing() {}

}  // namespace

void read_device(void* to, const void* from, std::size_t bytes, void* stream) {
  auto* const on = static_cast<cudaStream_t>(stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, on), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(on), "cudaStreamSynchronize");
}

void clear_device(void* to, std::size_t bytes, void* stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

void order_device(void* stream) {
  nothing<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>();
  check(cudaGetLastError(), "an empty kernel");
}

}  // namespace gossamer::cuda
