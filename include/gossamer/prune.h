// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer {

/// The cubic schedule of gradual pruning (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1):
/// s(t) = s_final + (s_initial − s_final)·(1 − (t − begin)/(end − begin))³ between begin and end,
/// s_initial before, s_final after. Steps are whatever the caller counts; begin < end.
double cubic_sparsity(double initial, double final_sparsity, std::int64_t begin, std::int64_t end,
                      std::int64_t step);

}  // namespace gossamer
