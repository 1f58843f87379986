// SPDX-License-Identifier: BSD-3-Clause
// Packs a 2:4 weight in its own dtype: one thread moves 32 bytes of one row, which become 16 bytes
// of kept values and a nibble for each group.
//
//   a warp:  8 rows × 4 threads; four threads read 128 contiguous bytes of a row and write 64.
//
// Bound: bytes, of 16 bits in·out·(2 + 9/8) and of 8 bits in·out·(1 + 5/8), over the memory's
// bandwidth; the selection is a table of sixteen nibbles in a register and one or two byte permutes
// a group. H200 (2026-11-30), 8192×8192 in bfloat16: 82 µs verified, 102 pruned, 94 and 76 % of the
// bandwidth of a copy that moves as many bytes; in int8 46 and 70 µs, 89 and 58 %.
#include "cuda/pack_sp24.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/common/chunk_24.cuh"
#include "cuda/common/runtime.h"

namespace gossamer::cuda {
namespace {

using namespace pack24;

constexpr int kThreads = 256;
constexpr int kBlocks = 6;  // of a multiprocessor: enough bytes under way

struct Source {
  const unsigned char* values;
  std::int64_t stride;  // bytes
  const bool* mask;
  std::int64_t mask_stride;
  int out;
  int in;
  bool mask_aligned;
};

/// 32 bytes of a row, zeros past the edges.
template <int kElementBytes, bool kAligned>
__device__ __forceinline__ void load_inputs(std::uint32_t (&words)[8], const unsigned char* row,
                                            std::int64_t column, std::int64_t in, bool inside) {
  constexpr int kInputs = Chunk<kElementBytes>::kInputs;
  if (kAligned && inside && column + kInputs <= in) {
    const auto* const from = reinterpret_cast<const uint4*>(row + column * kElementBytes);
    const uint4 a = __ldg(from);
    const uint4 b = __ldg(from + 1);
    words[0] = a.x, words[1] = a.y, words[2] = a.z, words[3] = a.w;
    words[4] = b.x, words[5] = b.y, words[6] = b.z, words[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    words[i] = 0;
#pragma unroll
    for (int j = 0; j < 4 / kElementBytes; ++j) {
      const std::int64_t c = column + i * (4 / kElementBytes) + j;
      if (!inside || c >= in) continue;
      std::uint32_t value;
      if constexpr (kElementBytes == 2) {
        value = reinterpret_cast<const std::uint16_t*>(row)[c];
      } else {
        value = row[c];
      }
      words[i] |= value << (8 * kElementBytes * j);
    }
  }
}

/// The positions that a group keeps by its values alone.
template <Element kElement>
__device__ __forceinline__ std::uint32_t chosen(const std::uint32_t (&words)[8], int g,
                                                Selection selection) {
  if constexpr (kElement == Element::k16Bit) {
    const Pair pair{words[2 * g], words[2 * g + 1]};
    return selection == Selection::kMagnitude ? two_largest16(pair) : nonzeros16(pair);
  } else {
    std::uint32_t magnitude = words[g] & 0x7f7f7f7f;
    // -128 stays 128, which is what it is without a sign.
    if constexpr (kElement == Element::kInt8) magnitude = __vabs4(words[g]);
    if (selection == Selection::kMagnitude) {
      return two_largest(magnitude & 0xff, magnitude >> 8 & 0xff, magnitude >> 16 & 0xff,
                         magnitude >> 24);
    }
    return bits_of_bytes(__vcmpne4(magnitude, 0));
  }
}

/// Negative zeros become zeros, and so does what is not kept.
template <Element kElement>
__device__ __forceinline__ void clean(std::uint32_t (&words)[8], int g, std::uint32_t kept) {
  if constexpr (kElement == Element::k16Bit) {
    const auto of = [](std::uint32_t word, std::uint32_t two) {
      const bool low = (two & 1) != 0 && (word & kMagnitude16) != 0;
      const bool high = (two & 2) != 0 && (word & kMagnitude16 << 16) != 0;
      return (low ? word & 0xffff : 0) | (high ? word & 0xffff0000 : 0);
    };
    words[2 * g] = of(words[2 * g], kept);
    words[2 * g + 1] = of(words[2 * g + 1], kept >> 2);
  } else {
    std::uint32_t word = words[g] & bytes_of_bits(kept) * 0xff;
    if constexpr (kElement == Element::kFloat8) word &= ~__vcmpeq4(word, 0x80808080);
    words[g] = word;
  }
}

template <Element kElement, bool kAligned>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pack_kernel(const __grid_constant__ Source from, Selection selection,
                const __grid_constant__ PackedHeader header, unsigned char* packed,
                const __grid_constant__ Matrix to, unsigned long long* violation) {
  constexpr int kBytes = element_bytes(kElement);
  using C = Chunk<kBytes>;
  store_header(header, packed);
  const bool only_verifies = to.tiles == nullptr && to.values == nullptr;
  const Place place(static_cast<int>(threadIdx.x));
  const std::int64_t count = to.row_tiles * to.input_tiles;
  for (std::int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const std::int64_t row = t / to.input_tiles * C::Tile::kRows + place.row;
    const std::int64_t chunk = t % to.input_tiles * C::kOfTile + place.quarter;
    const std::int64_t column = chunk * C::kInputs;
    const bool inside = row < from.out;
    std::uint32_t words[8];
    load_inputs<kBytes, kAligned>(words, from.values + row * from.stride, column, from.in, inside);
    std::uint32_t mask = 0;
    const bool is_masked = from.mask != nullptr;
    if (is_masked && inside) {
      mask = load_mask<C::kInputs>(from.mask + row * from.mask_stride, column, from.in,
                                   from.mask_aligned);
    }
    std::uint32_t stored[4] = {};
    std::uint32_t meta = 0;
#pragma unroll
    for (int g = 0; g < C::kGroups; ++g) {
      std::uint32_t kept = is_masked ? mask >> (4 * g) & 15 : chosen<kElement>(words, g, selection);
      if (!is_legal(kept)) {
        atomicMin(violation, static_cast<unsigned long long>(row * from.in + column + 4 * g));
        kept = 0;
      }
      clean<kElement>(words, g, kept);
      const std::uint32_t nibble = nibble_of(kept);
      if constexpr (kElement == Element::k16Bit) {
        stored[g] = select16({words[2 * g], words[2 * g + 1]}, nibble);
      } else {
        const std::uint32_t two = __byte_perm(words[g], 0, (nibble & 3) | (nibble >> 2) << 4);
        stored[g / 2] |= (two & 0xffff) << (16 * (g % 2));
      }
      meta |= nibble << (4 * g);
    }
    if (!only_verifies) store_chunk<kBytes>(to, row, chunk, stored, meta);
  }
}

template <Element kElement>
void launch(const DenseWeight& w, const PackedHeader& header, std::byte* packed,
            const PackedMatrix& packed_matrix, Selection selection, Verdict* verdict,
            cudaStream_t stream) {
  constexpr int kBytes = element_bytes(kElement);
  constexpr std::int64_t kMostBlocks = 1 << 30;
  const Matrix to = matrix_of<kBytes>(packed_matrix);
  const Source from{static_cast<const unsigned char*>(w.values),
                    w.row_stride * kBytes,
                    w.mask,
                    w.mask_stride,
                    static_cast<int>(w.out),
                    static_cast<int>(w.in),
                    is_aligned(w.mask, w.mask_stride)};
  const auto kernel = is_aligned(w.values, from.stride) ? pack_kernel<kElement, true>
                                                        : pack_kernel<kElement, false>;
  const auto blocks = static_cast<unsigned>(std::min(to.row_tiles * to.input_tiles, kMostBlocks));
  kernel<<<blocks, kThreads, 0, stream>>>(
      from, selection, header, reinterpret_cast<unsigned char*>(packed), to,
      reinterpret_cast<unsigned long long*>(&verdict->violation));
  check(cudaGetLastError(), "pack_sp24");
}

}  // namespace

void pack_sp24(const DenseWeight& w, const PackedHeader& header, std::byte* packed,
               const PackedMatrix& to, Selection selection, Verdict* verdict, void* stream) {
  auto* const on = static_cast<cudaStream_t>(stream);
  check(cudaMemsetAsync(verdict, 0xff, sizeof(*verdict), on), "cudaMemsetAsync");
  switch (w.dtype) {
    case DType::kBFloat16:
    case DType::kFloat16:
      return launch<Element::k16Bit>(w, header, packed, to, selection, verdict, on);
    case DType::kFloat8E4M3:
      return launch<Element::kFloat8>(w, header, packed, to, selection, verdict, on);
    case DType::kInt8:
      return launch<Element::kInt8>(w, header, packed, to, selection, verdict, on);
    default:
      throw Error(ErrorCode::kUnsupported,
                  "2:4 weights of float16, bfloat16, float8_e4m3fn and int8 are packed on a GPU; "
                  "convert the weight with .to(torch.bfloat16)");
  }
}

}  // namespace gossamer::cuda
