// SPDX-License-Identifier: BSD-3-Clause
// Bits to columns, eight bits at a time by a table, with the popcnt instruction.
#include <cstdint>

#include "cpu/kcsr_task.h"

namespace {
#include "cpu/positions.inl"
// Builds on it.
#include "cpu/bitmask_index.inl"
}  // namespace

namespace gossamer::cpu {
void avx2_bitmask_index(const BitmaskIndexTask& task) { bitmask_index(task); }
}  // namespace gossamer::cpu
