// SPDX-License-Identifier: BSD-3-Clause
// The vector of this instruction set, under the names that the shared loops use. Included inside an
// anonymous namespace.

using Vector = __m256;
constexpr std::int64_t kLanes = 8;

inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector load(const float* p) { return _mm256_loadu_ps(p); }
/// Loaded once, however often it is used: a compiler may put a load into each instruction.
inline Vector in_register(Vector v) {
  asm("" : "+x"(v));
  return v;
}
inline __m256i in_register(__m256i v) {
  asm("" : "+x"(v));
  return v;
}
inline void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
inline Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline Vector repeat(float value) { return _mm256_set1_ps(value); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector times(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector divide(Vector a, Vector b) { return _mm256_div_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
/// The second operand where one is NaN.
inline Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
inline Vector absolute(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vector nearest_integer(Vector a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// 2^a for whole numbers −126 to 127.
inline Vector power_of_two(Vector a) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
/// a < b ? x : y in every lane.
inline Vector where_less(Vector a, Vector b, Vector x, Vector y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

/// A mask whose first `count` lanes are on; 8 or more: all.
inline __m256i first_lanes(std::int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int limit = count > 8 ? 8 : static_cast<int>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lane);
}

/// The nearest whole numbers of the first `count` lanes, which fit a byte.
inline void store_bytes(std::int8_t* p, Vector v, std::int64_t count) {
  const __m256i numbers = _mm256_cvtps_epi32(v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
  const __m128i bytes = _mm_packs_epi16(words, words);
  if (count >= 8) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
  alignas(16) std::int8_t all[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
  for (std::int64_t i = 0; i < count; ++i) p[i] = all[i];
}

struct Float32 {
  using Type = float;
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector load_first(const float* p, std::int64_t count) {
    return _mm256_maskload_ps(p, first_lanes(count));
  }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static void store_first(float* p, Vector v, std::int64_t count) {
    _mm256_maskstore_ps(p, first_lanes(count), v);
  }
  static Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
};

/// What the 16-bit types share: AVX2 has no masked loads of them, so ends go through memory.
template <typename Element>
struct HalfWidth {
  using Type = std::uint16_t;
  static Vector load(const std::uint16_t* p) {
    return Element::widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vector load_first(const std::uint16_t* p, std::int64_t count) {
    alignas(16) std::uint16_t all[8] = {};
    for (std::int64_t i = 0; i < count && i < 8; ++i) all[i] = p[i];
    return load(all);
  }
  static void store(std::uint16_t* p, Vector v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), Element::narrow(v));
  }
  static void store_first(std::uint16_t* p, Vector v, std::int64_t count) {
    alignas(16) std::uint16_t all[8];
    store(all, v);
    for (std::int64_t i = 0; i < count && i < 8; ++i) p[i] = all[i];
  }
};

struct BFloat16 : HalfWidth<BFloat16> {
  static Vector widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  /// To nearest, ties to even.
  static __m128i narrow(Vector v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
  static Vector broadcast(const std::uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_set1_epi32(static_cast<std::int32_t>(static_cast<std::uint32_t>(*p) << 16)));
  }
};

struct Float16 : HalfWidth<Float16> {
  static Vector widen(__m128i bits) { return _mm256_cvtph_ps(bits); }
  static __m128i narrow(Vector v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Vector broadcast(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<std::int16_t>(*p)));
  }
};
