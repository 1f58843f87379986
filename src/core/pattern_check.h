// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>

#include "gossamer/pattern.h"

namespace gossamer::detail {

/// The largest block side, V and M of V:N:M: keeps one block's memory and one panel's small.
inline constexpr std::int32_t kMaxPatternSide = 4096;

/// How many columns of a V:N:M group are live in a panel (Castro et al. 2023, VENOM,
/// arXiv:2310.02065, section 3).
inline constexpr std::int64_t kVnmLiveColumns = 4;

/// A sentence why no such pattern exists (or has fields set that its kind does not use); empty
/// where the fields are right.
std::string pattern_fault(const Pattern& pattern);

}  // namespace gossamer::detail
