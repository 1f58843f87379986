// SPDX-License-Identifier: BSD-3-Clause
#include "core/top_k.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace gossamer::detail {
namespace {

constexpr std::uint64_t kNothing = std::numeric_limits<std::uint64_t>::max();

/// Few enough to be copied: a histogram would cost more than they do.
constexpr std::int64_t kCopied = 1 << 16;

Threshold select_copied(const KeySource& scores, std::int64_t k) {
  std::vector<std::uint64_t> keys;
  keys.reserve(static_cast<std::size_t>(scores.count()));
  scores.visit([&](std::span<const double> run) {
    std::transform(run.begin(), run.end(), std::back_inserter(keys), order_key);
  });
  const auto nth = keys.begin() + (k - 1);
  std::nth_element(keys.begin(), nth, keys.end(), std::greater<>());
  const std::uint64_t key = *nth;
  const auto above =
      std::count_if(keys.begin(), keys.end(), [key](std::uint64_t other) { return other > key; });
  return {key, k - above};
}

/// Finds the k-th highest key 16 bits at a time, the highest first: each pass counts the keys that
/// share what is known by their next 16 bits.
Threshold select_by_radix(const KeySource& scores, std::int64_t k) {
  constexpr int kDigitBits = 16;
  constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
  std::vector<std::int64_t> counts(kDigits);
  std::uint64_t known = 0;
  std::uint64_t known_mask = 0;
  std::int64_t wanted = k;
  for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    std::fill(counts.begin(), counts.end(), 0);
    scores.visit([&](std::span<const double> run) {
      for (const double score : run) {
        const std::uint64_t key = order_key(score);
        if ((key & known_mask) == known) ++counts[(key >> shift) & (kDigits - 1)];
      }
    });
    std::size_t digit = kDigits - 1;
    for (; counts[digit] < wanted; --digit) wanted -= counts[digit];
    known |= static_cast<std::uint64_t>(digit) << shift;
    known_mask |= static_cast<std::uint64_t>(kDigits - 1) << shift;
  }
  return {known, wanted};
}

}  // namespace

Threshold top_k(const KeySource& scores, std::int64_t k) {
  const std::int64_t count = scores.count();
  if (k <= 0) return {kNothing, 0};
  if (k >= count) return {0, count};
  return count <= kCopied ? select_copied(scores, k) : select_by_radix(scores, k);
}

}  // namespace gossamer::detail
