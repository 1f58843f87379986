// SPDX-License-Identifier: BSD-3-Clause
#include "plan/trial_layouts.h"

#include "gossamer/error.h"
#include "plan/memory.h"

namespace gossamer::plan {

bool TrialLayouts::add(Layout layout) {
  if (groups_.contains(layout)) return true;
  const bool is_first = groups_.empty();
  if (left_.empty()) left_.push_back(room_);
  if (layout == weight_.layout()) {  // held in any case
    views_.emplace(layout, weight_);
    groups_[layout] = 0;
    return true;
  }
  try {
    const std::int64_t bytes = layout_bytes(weight_, layout);
    std::size_t group = 0;
    while (!is_first && group < left_.size() && bytes > left_[group]) ++group;
    if (group == left_.size()) {
      if (group == kMostGroups || bytes > room_) return false;
      left_.push_back(room_);
    }
    groups_[layout] = group;
    // Copies of the first group are made at once, others when their turn comes.
    left_[group] -= group == 0 ? view(layout).size_bytes() : bytes;
  } catch (const Error&) {
    groups_.erase(layout);
    return false;
  }
  return true;
}

const PackedView& TrialLayouts::view(Layout layout) {
  if (const auto held = views_.find(layout); held != views_.end()) return held->second;
  const std::size_t wanted = groups_.at(layout);
  const auto is_of_others = [&](const auto& entry) {
    return groups_.at(entry.first) != wanted && entry.first != weight_.layout();
  };
  std::erase_if(views_, is_of_others);
  std::erase_if(weights_, is_of_others);
  const PackedWeight& made = weights_.emplace(layout, convert(weight_, layout)).first->second;
  return views_.emplace(layout, made.view()).first->second;
}

}  // namespace gossamer::plan
