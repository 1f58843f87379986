// SPDX-License-Identifier: BSD-3-Clause
// The kernels of AMX on a model of its tile registers, so that expanding, blocking and the order of
// operands are tested on machines that have AVX-512 but no AMX.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "model_tiles.h"

namespace {

#include "cpu/avx512/vector.inl"
// Each builds on those above.
#include "cpu/epilogue.inl"
//
#include "cpu/avx512/dequantize.inl"
#include "cpu/avx512/transpose.inl"
//
#include "cpu/avx512/pack_pairs.inl"
#include "cpu/avx512/pack_quads.inl"
#include "cpu/avx512/quarters.inl"
//
#include "cpu/avx512/store_quads.inl"
#include "cpu/avx512vbmi2/bits.inl"

/// What Intel's manual says of the instructions, element by element. Registers that are used before
/// configure() or after release() hold what cannot be mistaken for a result.
struct Tiles {
  static void configure() { std::memset(bytes(), 0, sizeof(Register) * 8); }
  static void release() { std::memset(bytes(), 0x7f, sizeof(Register) * 8); }

  template <int tile>
  static void zero() {
    std::memset(bytes()[tile], 0, sizeof(Register));
  }
  template <int tile>
  static void load(const void* from, std::int64_t row_bytes) {
    for (int i = 0; i < 16; ++i) {
      std::memcpy(bytes()[tile][i], static_cast<const std::byte*>(from) + i * row_bytes, 64);
    }
  }
  template <int tile>
  static void store(void* to, std::int64_t row_bytes) {
    for (int i = 0; i < 16; ++i) {
      std::memcpy(static_cast<std::byte*>(to) + i * row_bytes, bytes()[tile][i], 64);
    }
  }
  template <int sum, int left, int right>
  static void dot_bf16() {
    dot<float, std::uint16_t, sum, left, right>([](std::uint16_t bits) {
      const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
      float value;
      std::memcpy(&value, &word, 4);
      return value;
    });
  }
  template <int sum, int left, int right>
  static void dot_int8() {
    dot<std::int32_t, std::int8_t, sum, left, right>(
        [](std::int8_t value) { return std::int32_t{value}; });
  }

 private:
  using Register = std::byte[16][64];

  static Register* bytes() {
    thread_local Register registers[8];
    return registers;
  }

  template <typename Sum, typename Element, int sum, int left, int right, typename F>
  static void dot(const F& value) {
    constexpr int kPerWord = static_cast<int>(sizeof(Sum) / sizeof(Element));
    Sum c[16][16];
    Element a[16][16 * kPerWord];
    Element b[16][16 * kPerWord];
    std::memcpy(c, bytes()[sum], sizeof(c));
    std::memcpy(a, bytes()[left], sizeof(a));
    std::memcpy(b, bytes()[right], sizeof(b));
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < 16; ++k) {
        for (int j = 0; j < 16; ++j) {
          for (int h = 0; h < kPerWord; ++h) {
            c[i][j] += value(a[i][kPerWord * k + h]) * value(b[k][kPerWord * j + h]);
          }
        }
      }
    }
    std::memcpy(bytes()[sum], c, sizeof(c));
  }
};

#include "cpu/amx/amx_linear.inl"
//
#include "cpu/amx/amx_overlap.inl"
//
#include "cpu/amx/amx_linear_bsr.inl"

}  // namespace

namespace gossamer::cpu {

constinit const KcsrFunctions model_bitmask_bf16 = kBitmaskBf16;
constinit const KcsrFunctions model_bitmask_int8 = kBitmaskInt8;
constinit const KcsrFunctions model_overlapped_bf16 = kOverlappedBf16;
constinit const KcsrFunctions model_overlapped_int8 = kOverlappedInt8;
constinit const KcsrFunctions model_blocks_bf16 = kBlocksBf16;
constinit const KcsrFunctions model_blocks_int8 = kBlocksInt8;

void model_count_kept(const BitmaskIndexTask& task) { count_kept(task); }

void model_linear_bsr_bf16(const TileBlocksTask& task) {
  multiply_tile_blocks<Bf16Pieces>(task, 2);
}
void model_linear_bsr_int8(const TileBlocksTask& task) {
  multiply_tile_blocks<Int8Pieces>(task, 1);
}

}  // namespace gossamer::cpu
