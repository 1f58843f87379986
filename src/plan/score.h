// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "plan/decide.h"

// What evidence says of layouts: of one, and of two that are held together.
namespace gossamer::plan {

/// A row in a bucket. `mean` is over the bucket's token counts that were timed, `worst` the least
/// of them; `seconds` is over all of them, where the model makes up for those that were not.
struct BucketScore {
  std::size_t candidate = 0;
  std::size_t worst_probe = 0;
  double mean = 0.0;
  double seconds = 0.0;  ///< geometric mean of the least times
  double worst = 0.0;
  double worst_beyond_call = 0.0;  ///< the same with kCallSeconds forgiven
  double mean_with_call = 0.0;     ///< `mean` with kCallSeconds charged
  double worst_with_call = 0.0;    ///< and `worst`
  double spread = 0.0;
  bool dense = false;  ///< kSpeed runs dense here
  bool aside = false;  ///< decides nothing but the row (Evidence::last_aside)
};

struct LayoutScore {
  Layout layout = Layout::kBitmask;
  std::optional<Layout> second;
  std::vector<BucketScore> buckets;  ///< of the probed buckets, smallest first
  double objective = 0.0;            ///< geometric mean over dense
  double seconds = 0.0;              ///< geometric mean
  bool slower = false;
  bool forgiven = false;  ///< slower somewhere, by no more than a call may cost
  bool wins = false;
};

class Scorer {
 public:
  Scorer(const Evidence& evidence, MemoryMode memory, bool forced)
      : evidence_(evidence), memory_(memory), forced_(forced) {}

  /// Nothing where some probed bucket has no row of these layouts.
  std::optional<LayoutScore> score(Layout layout, std::optional<Layout> second = {}) const;

  /// The best single layout. Throws Error(kUnsupported) where none has a kernel for every bucket.
  LayoutScore best_single() const;
  /// The best two; nothing where memory has room for one, or no two are small and speed is not all
  /// that counts. A larger layout takes a small one with it where `single`, the best alone, packs
  /// the layer in it anyway and both take at most 1.5 times as much.
  std::optional<LayoutScore> best_pair(const LayoutScore& single) const;
  /// Whether two layouts are worth their memory beside the best single one.
  bool pays(const LayoutScore& pair, const LayoutScore& single) const;
  /// The bucket in which `pair` gains most over `single`.
  std::size_t most_gaining_bucket(const LayoutScore& pair, const LayoutScore& single) const;
  /// By what factor it does in one bucket.
  static double gain(const LayoutScore& pair, const LayoutScore& single, std::size_t bucket);

  bool admissible(const LayoutScore& s) const { return !s.slower || memory_ == MemoryMode::kSpeed; }
  /// The ratio to dense if the row took `extra` seconds more.
  double ratio_with(double extra, std::size_t candidate, std::size_t probe) const;

 private:
  double ratio(std::size_t candidate, std::size_t probe) const;
  double least(std::size_t candidate, std::size_t probe) const;
  double growth(std::size_t candidate, std::size_t timed, std::size_t probe) const;
  std::optional<BucketScore> score(std::size_t candidate, int bucket) const;
  bool bucket_probed(int bucket) const;
  bool pairs(Layout first, Layout second, const LayoutScore& single) const;
  const Candidate& row_of(Layout layout) const;
  int rank(const LayoutScore& s) const { return !admissible(s) ? 0 : s.wins ? 2 : 1; }
  bool is_better(const LayoutScore& a, const LayoutScore& b) const;

  const Evidence& evidence_;
  MemoryMode memory_;
  bool forced_;
};

}  // namespace gossamer::plan
