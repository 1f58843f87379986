// SPDX-License-Identifier: BSD-3-Clause
// A row between dense and packed: the instructions that compress and expand do all of it, a vector
// of 32 or 16 elements at a time. Bound: memory.
#include <immintrin.h>

#include "cpu/convert_task.h"

namespace gossamer {
namespace {

#include "cpu/avx512vbmi2/bits.inl"
#include "cpu/convert.inl"

/// The elements at the set bits, one behind the other.
inline __m512i compress_words(__mmask32 mask, __m512i values) {
  __m512i packed;
  asm("vpxord %0, %0, %0\n\tvpcompressw %2, %0%{%1%}%{z%}"
      : "=&v"(packed)
      : "Yk"(mask), "v"(values));
  return packed;
}
/// Consecutive doublewords to the places of the set bits, zeros elsewhere.
inline __m512i expand_doublewords(__mmask16 mask, __m512i values) {
  __m512i wide;
  asm("vpxord %0, %0, %0\n\tvpexpandd %2, %0%{%1%}%{z%}" : "=&v"(wide) : "Yk"(mask), "v"(values));
  return wide;
}

/// What 16- and 32-bit elements differ in.
struct Words {
  using Raw = std::uint16_t;
  using Mask = __mmask32;
  static constexpr int kLanes = 32;
  static __m512i load(Mask lanes, const Raw* from) { return _mm512_maskz_loadu_epi16(lanes, from); }
  static void store(Raw* to, Mask lanes, __m512i v) { _mm512_mask_storeu_epi16(to, lanes, v); }
  static Mask nonzero(__m512i v, std::uint64_t magnitude) {
    return _mm512_test_epi16_mask(v, _mm512_set1_epi16(static_cast<short>(magnitude)));
  }
  static __m512i where(Mask lanes, __m512i v) { return _mm512_maskz_mov_epi16(lanes, v); }
  static __m512i compressed(Mask lanes, __m512i v) { return compress_words(lanes, v); }
  static __m512i expanded(Mask lanes, __m512i v) { return expand_words(lanes, v); }
};
struct Doublewords {
  using Raw = std::uint32_t;
  using Mask = __mmask16;
  static constexpr int kLanes = 16;
  static __m512i load(Mask lanes, const Raw* from) { return _mm512_maskz_loadu_epi32(lanes, from); }
  static void store(Raw* to, Mask lanes, __m512i v) { _mm512_mask_storeu_epi32(to, lanes, v); }
  static Mask nonzero(__m512i v, std::uint64_t magnitude) {
    return _mm512_test_epi32_mask(v, _mm512_set1_epi32(static_cast<int>(magnitude)));
  }
  static __m512i where(Mask lanes, __m512i v) { return _mm512_maskz_mov_epi32(lanes, v); }
  static __m512i compressed(Mask lanes, __m512i v) { return compress_doublewords(lanes, v); }
  static __m512i expanded(Mask lanes, __m512i v) { return expand_doublewords(lanes, v); }
};

/// The first `count` lanes; all where there are more.
template <typename Mask>
inline Mask first_lanes(std::int64_t count) {
  constexpr std::int64_t kLanes = 8 * sizeof(Mask);
  if (count >= kLanes) return static_cast<Mask>(~Mask{0});
  return count <= 0 ? Mask{0} : static_cast<Mask>((1ull << count) - 1);
}

template <typename T>
std::int64_t mark_vectors(const std::uint8_t* mask, const void* values, std::uint64_t magnitude,
                          std::int64_t in, std::uint64_t* bits) {
  const auto* const elements = static_cast<const typename T::Raw*>(values);
  std::int64_t count = 0;
  for (std::int64_t first = 0; first < in; first += 64) {
    std::uint64_t word = 0;
    if (mask != nullptr) {
      const auto lanes = first_lanes<__mmask64>(in - first);
      const __m512i bytes = _mm512_maskz_loadu_epi8(lanes, mask + first);
      word = _mm512_test_epi8_mask(bytes, bytes);
    } else {
      for (int i = 0; i < 64; i += T::kLanes) {
        const auto lanes = first_lanes<typename T::Mask>(in - first - i);
        const __m512i v = T::load(lanes, elements + first + i);
        word |= static_cast<std::uint64_t>(T::nonzero(v, magnitude)) << i;
      }
    }
    bits[first / 64] = word;
    count += count_bits(word);
  }
  return count;
}

template <typename T>
void compress_vectors(const void* values, std::uint64_t magnitude, const std::uint64_t* kept,
                      const std::uint64_t* filled, std::int64_t in, void* to, std::int64_t count) {
  const auto* const elements = static_cast<const typename T::Raw*>(values);
  auto* const stored = static_cast<typename T::Raw*>(to);
  std::int64_t done = 0;
  for (std::int64_t first = 0; done < count; first += T::kLanes) {
    const auto lanes = first_lanes<typename T::Mask>(in - first);
    const auto own = static_cast<typename T::Mask>(kept[first / 64] >> (first % 64));
    const auto places = static_cast<typename T::Mask>(filled[first / 64] >> (first % 64));
    const __m512i v = T::load(lanes, elements + first);
    const auto live = static_cast<typename T::Mask>(own & T::nonzero(v, magnitude));
    const __m512i packed = T::compressed(places, T::where(live, v));
    // Whole vectors but for the end of the row: what is behind them is another thread's.
    if (done + T::kLanes <= count) {
      _mm512_storeu_si512(stored + done, packed);
    } else {
      T::store(stored + done, first_lanes<typename T::Mask>(count - done), packed);
    }
    done += count_bits(places);
  }
}

template <typename T, bool kStreaming>
void expand_row(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values) {
  const auto* from = static_cast<const typename T::Raw*>(stored);
  auto* const elements = static_cast<typename T::Raw*>(values);
  for (std::int64_t first = 0; first < in; first += T::kLanes) {
    const auto places = static_cast<typename T::Mask>(bits[first / 64] >> (first % 64));
    const __m512i wide = T::expanded(places, _mm512_loadu_si512(from));
    from += count_bits(places);
    if (first + T::kLanes > in) {
      T::store(elements + first, first_lanes<typename T::Mask>(in - first), wide);
    } else if constexpr (kStreaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(elements + first), wide);
    } else {
      _mm512_storeu_si512(elements + first, wide);
    }
  }
}

template <typename T>
void expand_vectors(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values,
                    bool streaming) {
  (streaming ? expand_row<T, true> : expand_row<T, false>)(stored, bits, in, values);
}

void spread_vectors(const std::uint64_t* bits, std::int64_t in, std::uint8_t* mask,
                    bool streaming) {
  for (std::int64_t first = 0; first < in; first += 64) {
    const __m512i bytes = _mm512_maskz_set1_epi8(bits[first / 64], 1);
    if (first + 64 > in) {
      _mm512_mask_storeu_epi8(mask + first, first_lanes<__mmask64>(in - first), bytes);
    } else if (streaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(mask + first), bytes);
    } else {
      _mm512_storeu_si512(mask + first, bytes);
    }
  }
}

template <typename T>
constexpr cpu::RowCodec kCodec{mark_vectors<T>, compress_vectors<T>, expand_vectors<T>,
                               spread_vectors};

}  // namespace

cpu::RowCodec cpu::avx512vbmi2_row_codec(std::int64_t element_bytes) {
  return element_bytes == 2 ? kCodec<Words> : kCodec<Doublewords>;
}

}  // namespace gossamer
