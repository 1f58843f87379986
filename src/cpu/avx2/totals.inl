// SPDX-License-Identifier: BSD-3-Clause
// Adding up the lanes of vectors. Included inside an anonymous namespace behind vector.inl.

inline float sum_lanes(Vector v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/// In each half of a vector: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
template <typename Add>
[[gnu::always_inline]] inline Vector join_neighbours(Vector a, Vector b, Add add) {
  return add(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

/// Lane i of the result is the sum of all lanes of sums[i], for i < N; other lanes hold nothing
/// of use. `add` adds vectors, of floats or of integers in the guise of floats.
template <int N, typename Add>
[[gnu::always_inline]] inline Vector lane_totals(const Vector (&sums)[N], Add add) {
  static_assert(N <= kLanes);
  constexpr int kHalf = (N + 1) / 2;
  constexpr int kQuarter = (kHalf + 1) / 2;
  Vector half[kHalf];
  Vector quarter[kQuarter];
  const auto partner = [](int i, int count) { return i + 1 < count ? i + 1 : i; };
#pragma GCC unroll 4
  for (int i = 0; i < kHalf; ++i) {
    half[i] = join_neighbours(sums[2 * i], sums[partner(2 * i, N)], add);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kQuarter; ++i) {
    quarter[i] = join_neighbours(half[2 * i], half[partner(2 * i, kHalf)], add);
  }
  const Vector last = quarter[kQuarter - 1];
  return add(_mm256_permute2f128_ps(quarter[0], last, 0x20),
             _mm256_permute2f128_ps(quarter[0], last, 0x31));
}
