// SPDX-License-Identifier: BSD-3-Clause
// The best transposable 2:4 mask of a 4×4 tile, exactly. Included inside an anonymous namespace by
// one translation unit of each instruction set and by the CUDA kernel, so that all of them add and
// compare in one order and agree to the bit.
//
// A tile has 90 masks with two kept in every row and column. A row keeps one of six pairs of
// columns, so a mask is two rows above and two below that together use every column twice. What the
// two above use of each column falls into three classes, and the classes give all 90:
//   both keep the same pair        6 ways above, 1 below    = 6
//   complementary pairs            6 ways above, 6 below    = 36
//   pairs that share one column   12 uses, 2 above, 2 below = 48
// The best mask therefore is a maximum over 6 + 1 + 12 sums of a best above and a best below.
//
// F and C are float and int for one tile, or vectors of as many of both (GCC's vector extension)
// for a tile a lane: comparisons and choices are written the same for either.

constexpr int kTilePairs = 6;

/// The two columns of a pair as bits; pair 5 − i is the complement of pair i.
constexpr int pair_bits(int pair) { return 0xca6953 >> (4 * pair) & 15; }

/// Sums of the six pairs of one row.
template <typename F>
struct PairSums {
  F of[kTilePairs];
};

/// The best pairs for some rows: their sum, and the kept columns as bits, the upper row's lowest.
template <typename F, typename C>
struct BestPairs {
  F sum;
  C code;
};

/// Of four columns, in the order of pair_bits.
template <typename F>
constexpr PairSums<F> pair_sums(const F (&columns)[4]) {
  return {{columns[0] + columns[1], columns[0] + columns[2], columns[0] + columns[3],
           columns[1] + columns[2], columns[1] + columns[3], columns[2] + columns[3]}};
}

/// Either way round of two pairs on two rows.
template <int kFirst, int kSecond, typename C, typename F>
constexpr BestPairs<F, C> either(const PairSums<F>& upper, const PairSums<F>& lower) {
  const F straight = upper.of[kFirst] + lower.of[kSecond];
  const F crossed = upper.of[kSecond] + lower.of[kFirst];
  const C straight_code = C{} + (pair_bits(kFirst) | pair_bits(kSecond) << 4);
  const C crossed_code = C{} + (pair_bits(kSecond) | pair_bits(kFirst) << 4);
  return {straight >= crossed ? straight : crossed,
          straight >= crossed ? straight_code : crossed_code};
}

/// Takes what is strictly better.
template <typename F, typename C>
constexpr void offer(BestPairs<F, C>& best, const BestPairs<F, C>& other) {
  const F now = best.sum;
  best.sum = other.sum > now ? other.sum : now;
  best.code = other.sum > now ? other.code : best.code;
}

/// The two upper rows and the two lower ones together.
template <typename F, typename C>
constexpr BestPairs<F, C> joined(const BestPairs<F, C>& above, const BestPairs<F, C>& below) {
  return {above.sum + below.sum, above.code | below.code << 8};
}

/// The best of the six complementary choices on two rows.
template <typename C, typename F>
constexpr BestPairs<F, C> complementary(const PairSums<F>& upper, const PairSums<F>& lower) {
  BestPairs<F, C> best = either<0, 5, C>(upper, lower);
  offer(best, either<1, 4, C>(upper, lower));
  offer(best, either<2, 3, C>(upper, lower));
  return best;
}

/// Both rows above keep one pair, those below its complement.
template <int... kPair, typename F, typename C>
constexpr void offer_equal(BestPairs<F, C>& best, const PairSums<F> (&rows)[4]) {
  (offer(best, joined(either<kPair, kPair, C>(rows[0], rows[1]),
                      either<5 - kPair, 5 - kPair, C>(rows[2], rows[3]))),
   ...);
}

/// Two pairs that share a column above, given as 10·first + second. Columns used {2, 1, 1, 0} above
/// are used {0, 1, 1, 2} below: by the complements.
template <int... kTwo, typename F, typename C>
constexpr void offer_shared(BestPairs<F, C>& best, const PairSums<F> (&rows)[4]) {
  (offer(best, joined(either<kTwo / 10, kTwo % 10, C>(rows[0], rows[1]),
                      either<5 - kTwo / 10, 5 - kTwo % 10, C>(rows[2], rows[3]))),
   ...);
}

/// Bit 4r + c of the result: column c of row r is kept.
template <typename C, typename F>
constexpr C best_tile_24(const F (&scores)[4][4]) {
  const PairSums<F> rows[4] = {pair_sums(scores[0]), pair_sums(scores[1]), pair_sums(scores[2]),
                               pair_sums(scores[3])};
  BestPairs<F, C> best =
      joined(complementary<C>(rows[0], rows[1]), complementary<C>(rows[2], rows[3]));
  offer_equal<0, 1, 2, 3, 4, 5>(best, rows);
  offer_shared<1, 2, 3, 4, 12, 13, 15, 24, 25, 34, 35, 45>(best, rows);
  return best.code;
}
