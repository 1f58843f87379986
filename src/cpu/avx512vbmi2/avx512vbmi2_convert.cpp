// SPDX-License-Identifier: BSD-3-Clause
// A row between dense and packed, a vector of elements at a time: bits are masks of compress and
// expand. Bound: memory; lines that go past the caches are written whole.
#include <immintrin.h>

#include "cpu/convert_task.h"

namespace gossamer {
namespace {

/// The lowest `count` bits, up to 64.
inline std::uint64_t lowest(std::int64_t count) {
  return _bzhi_u64(~0ull, static_cast<unsigned>(count));
}

struct Words {
  using Raw = std::uint16_t;
  using Mask = __mmask32;
  static constexpr std::int64_t kWidth = 32;
  static __m512i splat(std::uint64_t v) { return _mm512_set1_epi16(static_cast<short>(v)); }
  static __m512i load(const Raw* from) { return _mm512_loadu_si512(from); }
  static __m512i load(Mask mask, const Raw* from) { return _mm512_maskz_loadu_epi16(mask, from); }
  static void store(Raw* to, Mask mask, __m512i v) { _mm512_mask_storeu_epi16(to, mask, v); }
  static Mask nonzero(Mask mask, __m512i v, __m512i size) {
    return _mm512_mask_test_epi16_mask(mask, v, size);
  }
  static __m512i kept(Mask mask, __m512i v) { return _mm512_maskz_mov_epi16(mask, v); }
  static __m512i compress(Mask mask, __m512i v) { return _mm512_maskz_compress_epi16(mask, v); }
  static __m512i expand(Mask mask, __m512i v) { return _mm512_maskz_expand_epi16(mask, v); }
};

struct Doublewords {
  using Raw = std::uint32_t;
  using Mask = __mmask16;
  static constexpr std::int64_t kWidth = 16;
  static __m512i splat(std::uint64_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
  static __m512i load(const Raw* from) { return _mm512_loadu_si512(from); }
  static __m512i load(Mask mask, const Raw* from) { return _mm512_maskz_loadu_epi32(mask, from); }
  static void store(Raw* to, Mask mask, __m512i v) { _mm512_mask_storeu_epi32(to, mask, v); }
  static Mask nonzero(Mask mask, __m512i v, __m512i size) {
    return _mm512_mask_test_epi32_mask(mask, v, size);
  }
  static __m512i kept(Mask mask, __m512i v) { return _mm512_maskz_mov_epi32(mask, v); }
  static __m512i compress(Mask mask, __m512i v) { return _mm512_maskz_compress_epi32(mask, v); }
  static __m512i expand(Mask mask, __m512i v) { return _mm512_maskz_expand_epi32(mask, v); }
};

/// The bits of one vector from column `first` on.
template <typename T>
inline typename T::Mask bits_at(const std::uint64_t* bits, std::int64_t first) {
  return static_cast<typename T::Mask>(bits[first / 64] >> (first % 64));
}

/// The bits of up to 64 elements from column `first` on.
template <typename T>
inline std::uint64_t nonzero_word(const typename T::Raw* elements, std::uint64_t magnitude,
                                  std::int64_t first, std::int64_t in) {
  const __m512i size = T::splat(magnitude);
  std::uint64_t word = 0;
  for (std::int64_t i = 0; i < 64 && first + i < in; i += T::kWidth) {
    const std::int64_t left = in - first - i;
    const auto here = static_cast<typename T::Mask>(lowest(left < T::kWidth ? left : T::kWidth));
    const __m512i v = T::load(here, elements + first + i);
    word |= static_cast<std::uint64_t>(T::nonzero(here, v, size)) << i;
  }
  return word;
}

template <typename T>
std::int64_t mark(const std::uint8_t* mask, const void* values, std::uint64_t magnitude,
                  std::int64_t in, std::uint64_t* bits) {
  const auto* const elements = static_cast<const typename T::Raw*>(values);
  std::int64_t count = 0;
  for (std::int64_t first = 0; first < in; first += 64) {
    std::uint64_t word = 0;
    if (mask != nullptr) {
      const std::int64_t left = in - first;
      const __mmask64 here = lowest(left < 64 ? left : 64);
      const __m512i marks = _mm512_maskz_loadu_epi8(here, mask + first);
      word = _mm512_test_epi8_mask(marks, marks);
    } else {
      word = nonzero_word<T>(elements, magnitude, first, in);
    }
    bits[first / 64] = word;
    count += _mm_popcnt_u64(word);
  }
  return count;
}

template <typename T>
void compress(const void* values, std::uint64_t magnitude, const std::uint64_t* kept,
              const std::uint64_t* filled, std::int64_t in, void* to, std::int64_t count) {
  const auto* const elements = static_cast<const typename T::Raw*>(values);
  auto* const stored = static_cast<typename T::Raw*>(to);
  const __m512i size = T::splat(magnitude);
  std::int64_t done = 0;
  std::int64_t first = 0;
  // Whole vectors are written as far as the row's own values reach: what is behind them is another
  // thread's.
  for (; first + T::kWidth <= in && done + T::kWidth <= count; first += T::kWidth) {
    const __m512i v = T::load(elements + first);
    const auto places = bits_at<T>(filled, first);
    const auto live = T::nonzero(bits_at<T>(kept, first), v, size);
    _mm512_storeu_si512(stored + done, T::compress(places, T::kept(live, v)));
    done += _mm_popcnt_u64(places);
  }
  for (; done < count; first += T::kWidth) {
    const std::int64_t left = in - first < 0 ? 0 : in - first;
    const auto here = static_cast<typename T::Mask>(lowest(left < T::kWidth ? left : T::kWidth));
    const __m512i v = T::load(here, elements + first);
    const auto places = bits_at<T>(filled, first);
    const auto own = static_cast<typename T::Mask>(here & bits_at<T>(kept, first));
    const __m512i packed = T::compress(places, T::kept(T::nonzero(own, v, size), v));
    const std::int64_t more = _mm_popcnt_u64(places);
    const std::int64_t room = count - done;
    T::store(stored + done, static_cast<typename T::Mask>(lowest(more < room ? more : room)),
             packed);
    done += more;
  }
}

template <typename T, bool kStreaming>
void expand_row(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values) {
  const auto* from = static_cast<const typename T::Raw*>(stored);
  auto* const elements = static_cast<typename T::Raw*>(values);
  std::int64_t first = 0;
  for (; first + T::kWidth <= in; first += T::kWidth) {
    const auto places = bits_at<T>(bits, first);
    const __m512i wide = T::expand(places, T::load(from));
    from += _mm_popcnt_u64(places);
    if constexpr (kStreaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(elements + first), wide);
    } else {
      _mm512_storeu_si512(elements + first, wide);
    }
  }
  if (first == in) return;
  const auto here = static_cast<typename T::Mask>(lowest(in - first));
  const auto places = static_cast<typename T::Mask>(here & bits_at<T>(bits, first));
  T::store(elements + first, here, T::expand(places, T::load(from)));
}

template <typename T>
void expand(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values,
            bool streaming) {
  (streaming ? expand_row<T, true> : expand_row<T, false>)(stored, bits, in, values);
}

void spread(const std::uint64_t* bits, std::int64_t in, std::uint8_t* mask, bool streaming) {
  const __m512i one = _mm512_set1_epi8(1);
  std::int64_t first = 0;
  for (; first + 64 <= in; first += 64) {
    const __m512i bytes = _mm512_maskz_mov_epi8(bits[first / 64], one);
    if (streaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(mask + first), bytes);
    } else {
      _mm512_storeu_si512(mask + first, bytes);
    }
  }
  if (first == in) return;
  _mm512_mask_storeu_epi8(mask + first, lowest(in - first),
                          _mm512_maskz_mov_epi8(bits[first / 64], one));
}

template <typename T>
cpu::RowCodec codec_of(const cpu::RowCodec& nibbles) {
  return {mark<T>, compress<T>, expand<T>, spread, nibbles.to_nibbles, nibbles.from_nibbles};
}

}  // namespace

cpu::RowCodec cpu::avx512vbmi2_row_codec(std::int64_t element_bytes) {
  // A row's nibbles are a sixteenth of its bytes.
  const RowCodec nibbles = avx2_row_codec(element_bytes);
  return element_bytes == 2 ? codec_of<Words>(nibbles) : codec_of<Doublewords>(nibbles);
}

}  // namespace gossamer
