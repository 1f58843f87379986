// SPDX-License-Identifier: BSD-3-Clause
// The sums of a Step (linear_bitmask.inl) that computes in float32. Included inside an anonymous
// namespace behind vector.inl and totals.inl.

struct FloatSums {
  using Sum = Vector;
  static constexpr int kMaxTokens = 8;
  static Vector zero_sum() { return zero(); }
  static Vector add_sums(Vector a, Vector b) { return add(a, b); }
  static Vector load_sum(const float* p) { return load(p); }
  static void store_sum(float* p, Vector sum) { store(p, sum); }
  static float total(Vector sum) { return sum_lanes(sum); }
  template <int N>
  static Vector totals(const Vector (&sums)[N]) {
    return lane_totals(sums, [](Vector a, Vector b) { return add(a, b); });
  }
};
