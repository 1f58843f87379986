// SPDX-License-Identifier: BSD-3-Clause
// A row between dense and packed, eight elements at a time: a byte of bits names the shuffle that
// moves them. Bound: memory, and one table line of 16 bytes for 16-bit elements a step.
#include <immintrin.h>

#include "cpu/convert_task.h"

namespace gossamer {
namespace {

#include "cpu/convert.inl"

/// For a byte of bits: where its set bits are, in order (`gather`), and the rank of each set bit
/// (`scatter`); 0x80 where there is none.
struct Places {
  std::uint8_t gather[256][8];
  std::uint8_t scatter[256][8];
};

constexpr Places make_places() {
  Places places{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    unsigned rank = 0;
    for (unsigned i = 0; i < 8; ++i) places.gather[byte][i] = 0x80;
    for (unsigned i = 0; i < 8; ++i) {
      const bool set = (byte >> i & 1u) != 0;
      places.scatter[byte][i] = static_cast<std::uint8_t>(set ? rank : 0x80u);
      if (set) places.gather[byte][rank++] = static_cast<std::uint8_t>(i);
    }
  }
  return places;
}

constexpr Places kPlaces = make_places();

inline __m128i load_eight(const std::uint8_t* bytes) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
}

struct Words {
  using Raw = std::uint16_t;
  using Vector = __m128i;
  static Vector load(const Raw* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static void store(Raw* to, Vector v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v); }
  static void stream(Raw* to, Vector v) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), v); }
  static unsigned nonzero(Vector v, std::uint64_t magnitude) {
    const __m128i size = _mm_and_si128(v, _mm_set1_epi16(static_cast<short>(magnitude)));
    const __m128i zero = _mm_cmpeq_epi16(size, _mm_setzero_si128());
    const int bits = _mm_movemask_epi8(_mm_packs_epi16(zero, _mm_setzero_si128()));
    return ~static_cast<unsigned>(bits) & 0xff;
  }
  /// Places of elements as places of bytes: 2p and 2p + 1, 0x80 and more for none.
  static Vector moved(Vector v, const std::uint8_t (&places)[8]) {
    const __m128i place = load_eight(places);
    const __m128i twice = _mm_adds_epu8(place, place);
    const __m128i pairs = _mm_unpacklo_epi8(twice, twice);
    return _mm_shuffle_epi8(v, _mm_adds_epu8(pairs, _mm_set1_epi16(0x0100)));
  }
};

struct Doublewords {
  using Raw = std::uint32_t;
  using Vector = __m256i;
  static Vector load(const Raw* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store(Raw* to, Vector v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
  static void stream(Raw* to, Vector v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), v); }
  static unsigned nonzero(Vector v, std::uint64_t magnitude) {
    const __m256i size = _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(magnitude)));
    const __m256i zero = _mm256_cmpeq_epi32(size, _mm256_setzero_si256());
    const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(zero));
    return ~static_cast<unsigned>(bits) & 0xff;
  }
  static Vector moved(Vector v, const std::uint8_t (&places)[8]) {
    // Sign-extended, a place of 0x80 is negative.
    const __m256i place = _mm256_cvtepi8_epi32(load_eight(places));
    const __m256i none = _mm256_srai_epi32(place, 31);
    return _mm256_andnot_si256(none, _mm256_permutevar8x32_epi32(v, place));
  }
};

/// Eight bits from column `first` on, a multiple of 8.
inline unsigned byte_at(const std::uint64_t* bits, std::int64_t first) {
  return static_cast<unsigned>(bits[first / 64] >> (first % 64) & 0xff);
}

std::uint64_t mask_word(const std::uint8_t* mask) {
  const __m256i zero = _mm256_setzero_si256();
  const auto low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask));
  const auto high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + 32));
  const auto first = static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, zero)));
  const auto last = static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, zero)));
  return ~(first | static_cast<std::uint64_t>(last) << 32);
}

template <typename T>
std::int64_t mark_vectors(const std::uint8_t* mask, const void* values, std::uint64_t magnitude,
                          std::int64_t in, std::uint64_t* bits) {
  const auto* const elements = static_cast<const typename T::Raw*>(values);
  std::int64_t count = 0;
  std::int64_t first = 0;
  for (; first + 64 <= in; first += 64) {
    std::uint64_t word = 0;
    if (mask != nullptr) {
      word = mask_word(mask + first);
    } else {
      for (int i = 0; i < 64; i += 8) {
        const unsigned byte = T::nonzero(T::load(elements + first + i), magnitude);
        word |= static_cast<std::uint64_t>(byte) << i;
      }
    }
    bits[first / 64] = word;
    count += count_bits(word);
  }
  if (first == in) return count;
  return count + mark<typename T::Raw>(mask == nullptr ? nullptr : mask + first, elements + first,
                                       magnitude, in - first, bits + first / 64);
}

template <typename T>
void compress_vectors(const void* values, std::uint64_t magnitude, const std::uint64_t* kept,
                      const std::uint64_t* filled, std::int64_t in, void* to, std::int64_t count) {
  const auto* const elements = static_cast<const typename T::Raw*>(values);
  auto* const stored = static_cast<typename T::Raw*>(to);
  std::int64_t done = 0;
  std::int64_t first = 0;
  // Whole vectors are written as far as the row's own values reach: what is behind them is another
  // thread's.
  for (; first + 8 <= in && done + 8 <= count; first += 8) {
    const unsigned places = byte_at(filled, first);
    const auto v = T::load(elements + first);
    const unsigned live = byte_at(kept, first) & T::nonzero(v, magnitude);
    if ((places & ~live) == 0) {
      T::store(stored + done, T::moved(v, kPlaces.gather[places]));
    } else {  // Zeros among them: to where they are, and from there.
      const auto packed = T::moved(v, kPlaces.gather[live]);
      T::store(stored + done,
               T::moved(T::moved(packed, kPlaces.scatter[live]), kPlaces.gather[places]));
    }
    done += count_bits(places);
  }
  const auto size = static_cast<typename T::Raw>(magnitude);
  for (; done < count; ++first) {
    if ((filled[first / 64] >> (first % 64) & 1) == 0) continue;
    const bool own = first < in && (kept[first / 64] >> (first % 64) & 1) != 0;
    const auto value = own ? elements[first] : typename T::Raw{0};
    stored[done++] = (value & size) != 0 ? value : typename T::Raw{0};
  }
}

template <typename T, bool kStreaming>
void expand_row(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values) {
  const auto* from = static_cast<const typename T::Raw*>(stored);
  auto* const elements = static_cast<typename T::Raw*>(values);
  std::int64_t first = 0;
  for (; first + 8 <= in; first += 8) {
    const unsigned places = byte_at(bits, first);
    const auto wide = T::moved(T::load(from), kPlaces.scatter[places]);
    from += count_bits(places);
    if constexpr (kStreaming) {
      T::stream(elements + first, wide);
    } else {
      T::store(elements + first, wide);
    }
  }
  for (; first < in; ++first) {
    const bool own = (bits[first / 64] >> (first % 64) & 1) != 0;
    elements[first] = own ? *from : typename T::Raw{0};
    from += own ? 1 : 0;
  }
}

template <typename T>
void expand_vectors(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values,
                    bool streaming) {
  (streaming ? expand_row<T, true> : expand_row<T, false>)(stored, bits, in, values);
}

void spread_vectors(const std::uint64_t* bits, std::int64_t in, std::uint8_t* mask,
                    bool streaming) {
  const __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  std::int64_t first = 0;
  for (; first + 32 <= in; first += 32) {
    const auto word = static_cast<int>(bits[first / 64] >> (first % 64));
    const __m256i own =
        _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of), bit_of);
    const __m256i kept = _mm256_cmpeq_epi8(own, bit_of);
    const __m256i bytes = _mm256_and_si256(kept, _mm256_set1_epi8(1));
    auto* const to = reinterpret_cast<__m256i*>(mask + first);
    if (streaming) {
      _mm256_stream_si256(to, bytes);
    } else {
      _mm256_storeu_si256(to, bytes);
    }
  }
  for (; first < in; ++first) {
    mask[first] = static_cast<std::uint8_t>(bits[first / 64] >> (first % 64) & 1);
  }
}

template <typename T>
constexpr cpu::RowCodec kCodec{mark_vectors<T>, compress_vectors<T>, expand_vectors<T>,
                               spread_vectors};

}  // namespace

cpu::RowCodec cpu::avx2_row_codec(std::int64_t element_bytes) {
  return element_bytes == 2 ? kCodec<Words> : kCodec<Doublewords>;
}

}  // namespace gossamer
