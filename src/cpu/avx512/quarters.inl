// SPDX-License-Identifier: BSD-3-Clause
// 16 rows × 4 elements of 32 bits, turned. Included inside an anonymous namespace behind
// vector.inl.
//
// Four loads of 128 bits a vector put rows 0, 4, 8 and 12 into its quarters (of a second one 1, 5,
// …), then transposes of 4×4 in the quarters give a vector of 16 rows for each element. Half the
// shuffles of a transpose of 16×16; the other half are loads.

/// Four elements of rows j, 4 + j, 8 + j, 12 + j, a row a quarter. `rows`: how many there are;
/// what is read instead of a missing one is not used.
inline Vector load_quarters(const float* from, std::int64_t stride, int j, std::int64_t rows) {
  const auto quarter = [&](int q) {
    const std::int64_t row = 4 * q + j;
    return _mm_loadu_ps(from + (row < rows ? row : rows - 1) * stride);
  };
  Vector v = _mm512_castps128_ps512(quarter(0));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, quarter(1));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, quarter(2));
  return _mm512_mask_broadcast_f32x4(v, 0xf000, quarter(3));
}

/// v[j] as load_quarters gives it for j becomes element j of 16 rows.
inline void turn_quarters(Vector (&v)[4]) {
  const auto pairs = [](Vector a) { return _mm512_castps_pd(a); };
  const __m512d low01 = pairs(_mm512_unpacklo_ps(v[0], v[1]));
  const __m512d high01 = pairs(_mm512_unpackhi_ps(v[0], v[1]));
  const __m512d low23 = pairs(_mm512_unpacklo_ps(v[2], v[3]));
  const __m512d high23 = pairs(_mm512_unpackhi_ps(v[2], v[3]));
  v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
  v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
  v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
  v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}
