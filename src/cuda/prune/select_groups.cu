// SPDX-License-Identifier: BSD-3-Clause
// N:M selection: an element is kept where fewer than N of its group rank above it. Whole groups of
// 4, 8 or 16 are held by a thread, which reads 16 bytes at a time; other groups are ranked by a
// thread an element. Bound: 4 bytes read and 1 written an element.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/runtime.h"
#include "cuda/prune/prune.h"

namespace gossamer::cuda {
namespace {

constexpr int kThreads = 256;

/// Numbers that order as scores do, NaN above all; −0 equals +0.
__device__ __forceinline__ unsigned order_key(float score) {
  const unsigned bits = __float_as_uint(score + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ unsigned long long order_key(double score) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(score + 0.0));
  return (bits >> 63) != 0 ? ~bits : bits | (1ull << 63);
}

/// Whether `other` at `k` ranks above `own` at `i`.
template <typename Key>
__device__ __forceinline__ bool is_above(Key other, int k, Key own, int i) {
  return other > own || (other == own && k < i);
}

/// Consecutive whole groups.
template <typename T, int kM>
__global__ void __launch_bounds__(kThreads)
    whole_groups_kernel(const T* scores, std::int64_t groups, int n, bool* mask) {
  constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t g = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
       g += step) {
    alignas(16) T values[kM];
#pragma unroll
    for (int i = 0; i < kM; i += kChunk) {
      *reinterpret_cast<uint4*>(values + i) = *reinterpret_cast<const uint4*>(scores + g * kM + i);
    }
    decltype(order_key(T{})) keys[kM];
#pragma unroll
    for (int i = 0; i < kM; ++i) keys[i] = order_key(values[i]);
#pragma unroll
    for (int word = 0; word < kM; word += 4) {
      unsigned bytes = 0;
#pragma unroll
      for (int i = word; i < word + 4; ++i) {
        int above = 0;
#pragma unroll
        for (int k = 0; k < kM; ++k) above += is_above(keys[k], k, keys[i], i) ? 1 : 0;
        bytes |= (above < n ? 1u : 0u) << (8 * (i - word));
      }
      *reinterpret_cast<unsigned*>(mask + g * kM + word) = bytes;
    }
  }
}

/// Any groups, an element a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    elements_kernel(const T* scores, std::int64_t count, std::int64_t segment, int n, int m,
                    bool* mask) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < count;
       e += step) {
    // Segments divide rows: they are consecutive over the whole matrix.
    const std::int64_t first = e / segment * segment;
    const int place = static_cast<int>((e - first) % m);
    const std::int64_t group = e - place;
    const int width = static_cast<int>(min(static_cast<std::int64_t>(m), first + segment - group));
    const auto own = order_key(scores[e]);
    int above = 0;
    for (int k = 0; k < width; ++k) above += is_above(order_key(scores[group + k]), k, own, place);
    mask[e] = above < n;
  }
}

unsigned blocks_for(std::int64_t items) {
  constexpr std::int64_t kMost = 1 << 30;
  return static_cast<unsigned>(std::min((items + kThreads - 1) / kThreads, kMost));
}

template <typename T, int kM>
void launch_whole(const GroupScores& g, bool* mask, cudaStream_t stream) {
  const std::int64_t groups = g.rows * g.cols / kM;
  whole_groups_kernel<T, kM><<<blocks_for(groups), kThreads, 0, stream>>>(
      static_cast<const T*>(g.scores), groups, g.n, mask);
}

template <typename T>
void launch(const GroupScores& g, bool* mask, cudaStream_t stream) {
  const bool is_whole = g.segment % g.m == 0 &&
                        reinterpret_cast<std::uintptr_t>(g.scores) % 16 == 0 &&
                        reinterpret_cast<std::uintptr_t>(mask) % 4 == 0;
  if (is_whole && g.m == 4) return launch_whole<T, 4>(g, mask, stream);
  if (is_whole && g.m == 8) return launch_whole<T, 8>(g, mask, stream);
  if (is_whole && g.m == 16) return launch_whole<T, 16>(g, mask, stream);
  const std::int64_t count = g.rows * g.cols;
  elements_kernel<T><<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const T*>(g.scores),
                                                                 count, g.segment, g.n, g.m, mask);
}

}  // namespace

void select_groups(const GroupScores& groups, bool* mask, void* stream) {
  if (groups.rows == 0 || groups.cols == 0) return;
  auto* const on = static_cast<cudaStream_t>(stream);
  (groups.dtype == DType::kFloat64 ? launch<double> : launch<float>)(groups, mask, on);
  check(cudaGetLastError(), "select_groups");
}

}  // namespace gossamer::cuda
