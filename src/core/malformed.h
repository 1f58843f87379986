// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "core/fail.h"

// What is wrong with the bytes of a packed weight.
namespace gossamer::detail {

/// Throws Error(kMalformedData).
template <typename... Args>
[[noreturn]] void malformed(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorCode::kMalformedData,
              "packed weight: " + fmt::format(format, std::forward<Args>(args)...));
}

inline bool all_zero(const std::byte* begin, const std::byte* end) {
  return std::all_of(begin, end, [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace gossamer::detail
