// SPDX-License-Identifier: BSD-3-Clause
// The vector of this instruction set, under the names that the shared loops use. Included inside an
// anonymous namespace.

using Vector = __m512;
constexpr std::int64_t kLanes = 16;

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
/// Loaded once, however often it is used: a compiler may put a load into each instruction.
inline Vector in_register(Vector v) {
  asm("" : "+v"(v));
  return v;
}
/// A mask is loaded into a general register, where its bits are counted: compilers would move it
/// there from a mask register, with an instruction on the port of the multiply-adds.
template <typename Bits>
inline Bits in_general_register(Bits bits) {
  asm("" : "+r"(bits));
  return bits;
}
inline __m512i in_register(__m512i v) {
  asm("" : "+v"(v));
  return v;
}
inline void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
inline Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Vector repeat(float value) { return _mm512_set1_ps(value); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector times(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
inline Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
/// The second operand where one is NaN.
inline Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
inline Vector absolute(Vector a) { return _mm512_abs_ps(a); }
inline Vector nearest_integer(Vector a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// 2^a for whole numbers −126 to 127.
inline Vector power_of_two(Vector a) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
/// a < b ? x : y in every lane.
inline Vector where_less(Vector a, Vector b, Vector x, Vector y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

inline __mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? static_cast<__mmask16>(0xffff)
                     : static_cast<__mmask16>((1u << static_cast<unsigned>(count)) - 1u);
}

/// The nearest whole numbers of the first `count` lanes, which fit a byte.
inline void store_bytes(std::int8_t* p, Vector v, std::int64_t count) {
  _mm512_mask_cvtsepi32_storeu_epi8(p, first_lanes(count), _mm512_cvtps_epi32(v));
}

struct Float32 {
  using Type = float;
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load_first(const float* p, std::int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), p);
  }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static void store_first(float* p, Vector v, std::int64_t count) {
    _mm512_mask_storeu_ps(p, first_lanes(count), v);
  }
  static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
};

struct BFloat16 {
  using Type = std::uint16_t;
  static Vector widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  /// To nearest, ties to even, subnormals kept (vcvtneps2bf16 would flush them).
  static __m256i narrow(Vector v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16));
  }
  static Vector load(const std::uint16_t* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vector load_first(const std::uint16_t* p, std::int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  }
  static void store(std::uint16_t* p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v));
  }
  static void store_first(std::uint16_t* p, Vector v, std::int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(v));
  }
  static Vector broadcast(const std::uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_set1_epi32(static_cast<std::int32_t>(static_cast<std::uint32_t>(*p) << 16)));
  }
};

struct Float16 {
  using Type = std::uint16_t;
  static Vector load(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vector load_first(const std::uint16_t* p, std::int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  }
  static __m256i narrow(Vector v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static void store(std::uint16_t* p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v));
  }
  static void store_first(std::uint16_t* p, Vector v, std::int64_t count) {
    _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(v));
  }
  static Vector broadcast(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<std::int16_t>(*p)));
  }
};
