// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "gossamer/packed_weight.h"

namespace gossamer::plan {

/// A weight in the layouts that a plan tries. Copies that do not fit beside each other are made one
/// group after the other: those of a group are held together, and dropped for those of the next.
class TrialLayouts {
 public:
  /// `room`: bytes of the copies that are held together.
  TrialLayouts(const PackedView& weight, std::int64_t room) : weight_(weight), room_(room) {}

  /// Takes a layout into the first group with room for it, or into one more if there are fewer than
  /// kMostGroups. The first of all is taken whatever its size. False where it does not fit or the
  /// weight's pattern does not.
  bool add(Layout layout);

  std::size_t groups() const { return left_.size(); }
  /// Of a layout that was added.
  std::size_t group(Layout layout) const { return groups_.at(layout); }
  /// Converted now unless it is held; valid until a layout of another group is asked for. Throws
  /// Error where the weight cannot be converted.
  const PackedView& view(Layout layout);

 private:
  static constexpr std::size_t kMostGroups = 3;

  PackedView weight_;
  std::int64_t room_;
  std::map<Layout, std::size_t> groups_;
  std::vector<std::int64_t> left_;  ///< of each group's room
  std::map<Layout, PackedWeight> weights_;
  std::map<Layout, PackedView> views_;
};

}  // namespace gossamer::plan
