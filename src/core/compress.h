// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace gossamer::detail {

/// Calls `visit(i)` for every i in [0, count) whose mask byte is 1, ascending. Eight bytes at a
/// time: at 90 % zeros most of them are skipped at once.
template <typename F>
void for_each_kept(const std::uint8_t* mask, std::int64_t count, const F& visit) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, mask + i, 8);
    for (; eight != 0; eight &= eight - 1) visit(i + std::countr_zero(eight) / 8);
  }
  for (; i < count; ++i) {
    if (mask[i] != 0) visit(i);
  }
}

/// Copies the elements whose mask byte is 1 to `to`; returns how many.
template <typename Raw>
std::int64_t compress(const std::byte* values, const std::uint8_t* mask, std::int64_t count,
                      Raw* to) {
  const Raw* const begin = to;
  for_each_kept(mask, count, [&](std::int64_t i) {
    *to++ = load_raw<Raw>(values + i * std::int64_t{sizeof(Raw)});
  });
  return to - begin;
}

}  // namespace gossamer::detail
