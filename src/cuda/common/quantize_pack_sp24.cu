// SPDX-License-Identifier: BSD-3-Clause
// Quantizes a 2:4 weight to eight bits and packs it: a row's largest magnitude, its scale, its kept
// values divided by that, in one kernel.
//
//   a block:  rows r, r + 1, r + 8 and r + 9 of a tile, whose metadata fill two 32-byte sectors;
//             128 threads a row, each with 32 inputs at a time. The first 8192 inputs of a row stay
//             in registers from the search for the largest to the division; others are read twice.
//
// Bound: bytes, of bfloat16 in·out·(2 + 5/8) over the memory's bandwidth.
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "cuda/common/chunk_24.cuh"
#include "cuda/common/eight_bit.cuh"
#include "cuda/common/runtime.h"
#include "cuda/pack_sp24.h"

namespace gossamer::cuda {
namespace {

using namespace pack24;

constexpr int kThreads = 512;
constexpr int kRows = 4;
constexpr int kRowThreads = kThreads / kRows;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kHeld = 2;  // chunks that a thread keeps
constexpr int kInputs = Chunk<1>::kInputs;
constexpr int kGroups = Chunk<1>::kGroups;

/// The three dtypes of a weight: magnitudes as integers, of which NaN are the largest.
struct BFloat16 {
  static constexpr int kBytes = 2;
  static constexpr std::uint32_t kInfinity = 0x7f80;
  static __device__ __forceinline__ float value(std::uint32_t bits) {
    return __uint_as_float(bits << 16);
  }
};
struct Float16 {
  static constexpr int kBytes = 2;
  static constexpr std::uint32_t kInfinity = 0x7c00;
  static __device__ __forceinline__ float value(std::uint32_t bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(static_cast<unsigned short>(bits)));
    return result;
  }
};
struct Float32 {
  static constexpr int kBytes = 4;
  static constexpr std::uint32_t kInfinity = 0x7f800000;
  static __device__ __forceinline__ float value(std::uint32_t bits) {
    return __uint_as_float(bits);
  }
};

struct Source {
  const unsigned char* values;
  std::int64_t stride;  // bytes
  const bool* mask;
  std::int64_t mask_stride;
  int out;
  int in;
  bool aligned;
  bool mask_aligned;
};

template <typename T>
__device__ __forceinline__ std::uint32_t bits_at(const unsigned char* row, std::int64_t column) {
  if constexpr (T::kBytes == 2) {
    return reinterpret_cast<const std::uint16_t*>(row)[column];
  } else {
    return reinterpret_cast<const std::uint32_t*>(row)[column];
  }
}

/// 32 inputs of a row.
template <typename T>
struct Inputs {
  static constexpr int kWords = kInputs * T::kBytes / 4;
  std::uint32_t words[kWords];

  __device__ __forceinline__ void load(const Source& from, std::int64_t row, std::int64_t column) {
    const unsigned char* const data = from.values + row * from.stride;
    if (from.aligned && row < from.out && column + kInputs <= from.in) {
      const auto* const wide = reinterpret_cast<const uint4*>(data + column * T::kBytes);
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 v = wide[i];
        words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = 0;
#pragma unroll
      for (int j = 0; j < 4 / T::kBytes; ++j) {
        const std::int64_t c = column + i * (4 / T::kBytes) + j;
        if (row < from.out && c < from.in) words[i] |= bits_at<T>(data, c) << (16 * j);
      }
    }
  }

  /// Of all inputs.
  __device__ __forceinline__ std::uint32_t largest() const {
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (T::kBytes == 2) {
        most = __vmaxu2(most, words[i] & 0x7fff7fff);
      } else {
        most = max(most, words[i] & 0x7fffffff);
      }
    }
    return T::kBytes == 2 ? max(most & 0xffff, most >> 16) : most;
  }

  /// The positions that group `g` keeps by its values alone.
  __device__ __forceinline__ std::uint32_t chosen(int g, Selection selection) const {
    if constexpr (T::kBytes == 2) {
      const Pair pair{words[2 * g], words[2 * g + 1]};
      return selection == Selection::kMagnitude ? two_largest16(pair) : nonzeros16(pair);
    } else {
      std::uint32_t m[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) m[i] = words[4 * g + i] & 0x7fffffff;
      if (selection == Selection::kMagnitude) return two_largest(m[0], m[1], m[2], m[3]);
      return (m[0] != 0 ? 1u : 0u) | (m[1] != 0 ? 2u : 0u) | (m[2] != 0 ? 4u : 0u) |
             (m[3] != 0 ? 8u : 0u);
    }
  }

  /// The two values of group `g` that a nibble names.
  __device__ __forceinline__ float2 selected(int g, std::uint32_t nibble) const {
    if constexpr (T::kBytes == 2) {
      const std::uint32_t two = select16({words[2 * g], words[2 * g + 1]}, nibble);
      return {T::value(two & 0xffff), T::value(two >> 16)};
    } else {
      const auto pick = [&](std::uint32_t i) {
        const std::uint32_t low = (i & 1) != 0 ? words[4 * g + 1] : words[4 * g];
        const std::uint32_t high = (i & 1) != 0 ? words[4 * g + 3] : words[4 * g + 2];
        return T::value((i & 2) != 0 ? high : low);
      };
      return {pick(nibble & 3), pick(nibble >> 2)};
    }
  }
};

/// Reports the first of 32 inputs that is NaN or an infinity.
template <typename T>
__device__ __noinline__ void report_not_finite(const Source& from, std::int64_t row,
                                               std::int64_t column, unsigned long long* place) {
  const unsigned char* const data = from.values + row * from.stride;
  constexpr std::uint32_t kMagnitude = T::kBytes == 2 ? 0x7fff : 0x7fffffff;
  for (std::int64_t c = column; c < column + kInputs && c < from.in; ++c) {
    if ((bits_at<T>(data, c) & kMagnitude) < T::kInfinity) continue;
    atomicMin(place, static_cast<unsigned long long>(row * from.in + c));
    return;
  }
}

struct Reports {
  unsigned long long* violation;
  unsigned long long* not_finite;
};

template <typename T, typename Q>
__device__ __forceinline__ void store_quantized(const Inputs<T>& inputs, const Source& from,
                                                const Matrix& to, std::int64_t row,
                                                std::int64_t chunk, float inverse,
                                                Selection selection, const Reports& reports) {
  const std::int64_t column = chunk * kInputs;
  const bool is_masked = from.mask != nullptr;
  std::uint32_t mask = 0;
  if (is_masked && row < from.out) {
    mask =
        load_mask<kInputs>(from.mask + row * from.mask_stride, column, from.in, from.mask_aligned);
  }
  std::uint32_t stored[4] = {};
  std::uint32_t meta = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    std::uint32_t kept = is_masked ? mask >> (4 * g) & 15 : inputs.chosen(g, selection);
    if (!is_legal(kept)) {
      atomicMin(reports.violation, static_cast<unsigned long long>(row * from.in + column + 4 * g));
      kept = 0;
    }
    const std::uint32_t nibble = nibble_of(kept);
    const float2 two = inputs.selected(g, nibble);
    const auto quantized = [&](float v, std::uint32_t position) {
      constexpr float kMost = EightBit<Q>::kMost;
      std::uint32_t q = EightBit<Q>::round(fminf(fmaxf(__fmul_rn(v, inverse), -kMost), kMost));
      if (std::is_same_v<Q, __nv_fp8_e4m3> && q == 0x80) q = 0;  // what rounds to −0.0
      // What fills a group up to two is zero, whatever the dense weight holds there.
      return (kept >> position & 1) != 0 ? q : 0u;
    };
    const std::uint32_t both = quantized(two.x, nibble & 3) | quantized(two.y, nibble >> 2) << 8;
    stored[g / 2] |= both << (16 * (g % 2));
    meta |= nibble << (4 * g);
  }
  store_chunk<1>(to, row, chunk, stored, meta);
}

template <typename T, typename Q>
__global__ void __launch_bounds__(kThreads, T::kBytes == 2 ? 2 : 1)
    quantize_pack_kernel(const __grid_constant__ Source from, Selection selection,
                         const __grid_constant__ PackedHeader header, unsigned char* packed,
                         const __grid_constant__ Matrix to, float* scales, Reports reports) {
  __shared__ std::uint32_t most_of_warp[kRows][kRowWarps];
  store_header(header, packed);
  const int slot = static_cast<int>(threadIdx.x) / kRowThreads;
  const int thread = static_cast<int>(threadIdx.x) % kRowThreads;
  const std::int64_t chunks = to.input_tiles * Chunk<1>::kOfTile;
  const std::int64_t count = to.row_tiles * (Chunk<1>::Tile::kRows / kRows);
  for (std::int64_t b = blockIdx.x; b < count; b += gridDim.x) {
    const std::int64_t row = b / 4 * 16 + b % 4 * 2 + slot % 2 + slot / 2 * 8;
    Inputs<T> held[kHeld];
    std::uint32_t most = 0;
    const auto look_at = [&](const Inputs<T>& inputs, std::int64_t chunk) {
      const std::uint32_t largest = inputs.largest();
      if (largest >= T::kInfinity) {
        report_not_finite<T>(from, row, chunk * kInputs, reports.not_finite);
      }
      most = max(most, largest);
    };
#pragma unroll
    for (int h = 0; h < kHeld; ++h) held[h].load(from, row, (h * kRowThreads + thread) * kInputs);
#pragma unroll
    for (int h = 0; h < kHeld; ++h) look_at(held[h], h * kRowThreads + thread);
    for (std::int64_t c = kHeld * kRowThreads + thread; c < chunks; c += kRowThreads) {
      Inputs<T> more;
      more.load(from, row, c * kInputs);
      look_at(more, c);
    }
    most = __reduce_max_sync(~0u, most);
    if (thread % 32 == 0) most_of_warp[slot][thread / 32] = most;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) most = max(most, most_of_warp[slot][w]);
    // The reciprocal of a subnormal scale is infinite: such a row is zeros.
    const float scale = __fdiv_rn(T::value(most), EightBit<Q>::kMost);
    const float reciprocal = __fdiv_rn(1.0f, scale);
    const bool is_zero = !(scale > 0.0f) || !(reciprocal < __int_as_float(0x7f800000));
    const float inverse = is_zero ? 0.0f : reciprocal;
    if (thread == 0 && row < from.out) scales[row] = is_zero ? 0.0f : scale;
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const std::int64_t c = h * kRowThreads + thread;
      if (c < chunks) {
        store_quantized<T, Q>(held[h], from, to, row, c, inverse, selection, reports);
      }
    }
    for (std::int64_t c = kHeld * kRowThreads + thread; c < chunks; c += kRowThreads) {
      Inputs<T> more;
      more.load(from, row, c * kInputs);
      store_quantized<T, Q>(more, from, to, row, c, inverse, selection, reports);
    }
    __syncthreads();
  }
}

template <typename T, typename Q>
void launch(const DenseWeight& w, const PackedHeader& header, std::byte* packed,
            const PackedMatrix& packed_matrix, Selection selection, float* scale, Verdict* verdict,
            cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = 1 << 30;
  const Matrix to = matrix_of<1>(packed_matrix);
  const std::int64_t stride = w.row_stride * T::kBytes;
  const Source from{static_cast<const unsigned char*>(w.values),
                    stride,
                    w.mask,
                    w.mask_stride,
                    static_cast<int>(w.out),
                    static_cast<int>(w.in),
                    is_aligned(w.values, stride),
                    is_aligned(w.mask, w.mask_stride)};
  const std::int64_t blocks = to.row_tiles * (Chunk<1>::Tile::kRows / kRows);
  quantize_pack_kernel<T, Q>
      <<<static_cast<unsigned>(std::min(blocks, kMostBlocks)), kThreads, 0, stream>>>(
          from, selection, header, reinterpret_cast<unsigned char*>(packed), to, scale,
          {reinterpret_cast<unsigned long long*>(&verdict->violation),
           reinterpret_cast<unsigned long long*>(&verdict->not_finite)});
  check(cudaGetLastError(), "quantize_pack_sp24");
}

template <typename T>
void launch_for(const DenseWeight& w, const PackedHeader& header, std::byte* packed,
                const PackedMatrix& to, Selection selection, float* scale, Verdict* verdict,
                cudaStream_t stream) {
  (to.dtype == DType::kInt8
       ? launch<T, signed char>
       : launch<T, __nv_fp8_e4m3>)(w, header, packed, to, selection, scale, verdict, stream);
}

}  // namespace

void quantize_pack_sp24(const DenseWeight& w, const PackedHeader& header, std::byte* packed,
                        const PackedMatrix& to, Selection selection, float* scale, Verdict* verdict,
                        void* stream) {
  auto* const on = static_cast<cudaStream_t>(stream);
  check(cudaMemsetAsync(verdict, 0xff, sizeof(*verdict), on), "cudaMemsetAsync");
  switch (w.dtype) {
    case DType::kBFloat16:
      return launch_for<BFloat16>(w, header, packed, to, selection, scale, verdict, on);
    case DType::kFloat16:
      return launch_for<Float16>(w, header, packed, to, selection, scale, verdict, on);
    case DType::kFloat32:
      return launch_for<Float32>(w, header, packed, to, selection, scale, verdict, on);
    default:
      throw Error(
          ErrorCode::kUnsupported,
          "2:4 weights of float32, float16 and bfloat16 are quantized on a GPU; convert the "
          "weight with .to(torch.float32)");
  }
}

}  // namespace gossamer::cuda
