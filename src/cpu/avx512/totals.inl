// SPDX-License-Identifier: BSD-3-Clause
// Adding up the lanes of vectors. Included inside an anonymous namespace behind vector.inl.

inline float sum_lanes(Vector v) { return _mm512_reduce_add_ps(v); }

/// Half of `a`, half of `b`: of every 2·kWidth lanes the first kWidth are of `a`.
template <int kWidth, typename Add>
[[gnu::always_inline]] inline Vector join(Vector a, Vector b, Add add) {
  constexpr __mmask16 kOfB = kWidth == 1   ? 0xaaaa
                             : kWidth == 2 ? 0xcccc
                             : kWidth == 4 ? 0xf0f0
                                           : 0xff00;
  // The lane to be added; those of `b` count from 16.
  const auto at = [](int lane) { return (lane ^ kWidth) + (kOfB >> lane & 1 ? 16 : 0); };
  const __m512i index =
      _mm512_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9),
                        at(10), at(11), at(12), at(13), at(14), at(15));
  return add(_mm512_mask_blend_ps(kOfB, a, b), _mm512_permutex2var_ps(a, index, b));
}

/// Lane i of the result is the sum of all lanes of sums[i], for i < N; other lanes hold nothing
/// of use. `add` adds vectors, of floats or of integers in the guise of floats.
template <int N, typename Add>
[[gnu::always_inline]] inline Vector lane_totals(const Vector (&sums)[N], Add add) {
  static_assert(N <= kLanes);
  constexpr int kHalf = (N + 1) / 2;
  constexpr int kQuarter = (kHalf + 1) / 2;
  constexpr int kEighth = (kQuarter + 1) / 2;
  Vector half[kHalf];
  Vector quarter[kQuarter];
  Vector eighth[kEighth];
  const auto partner = [](int i, int count) { return i + 1 < count ? i + 1 : i; };
#pragma GCC unroll 8
  for (int i = 0; i < kHalf; ++i) half[i] = join<1>(sums[2 * i], sums[partner(2 * i, N)], add);
#pragma GCC unroll 4
  for (int i = 0; i < kQuarter; ++i) {
    quarter[i] = join<2>(half[2 * i], half[partner(2 * i, kHalf)], add);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kEighth; ++i) {
    eighth[i] = join<4>(quarter[2 * i], quarter[partner(2 * i, kQuarter)], add);
  }
  return join<8>(eighth[0], eighth[kEighth - 1], add);
}
