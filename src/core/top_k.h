// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <span>

// Which of very many scores are the k highest, without sorting or copying them.
namespace gossamer::detail {

/// A number that orders as scores do; −0 equals +0.
inline std::uint64_t order_key(double score) {
  const auto bits = std::bit_cast<std::uint64_t>(score + 0.0);
  return (bits >> 63) != 0 ? ~bits : bits | (1ull << 63);
}

/// Keeps scores above `key`, and the first `ties` that equal it, in the order they are asked.
struct Threshold {
  std::uint64_t key = 0;
  std::int64_t ties = 0;

  bool keeps(double score) {
    const std::uint64_t own = order_key(score);
    if (own != key) return own > key;
    return ties-- > 0;
  }
};

/// Scores that can be read in order any number of times, a run at a time. No score is NaN.
class KeySource {
 public:
  using Visitor = std::function<void(std::span<const double>)>;
  virtual ~KeySource() = default;
  virtual std::int64_t count() const = 0;
  virtual void visit(const Visitor& visitor) const = 0;
};

/// The threshold that keeps the `k` highest of all, earlier ones first among equals; 0 <= k <=
/// count. Reads the scores at most four times; memory is constant.
Threshold top_k(const KeySource& scores, std::int64_t k);

}  // namespace gossamer::detail
