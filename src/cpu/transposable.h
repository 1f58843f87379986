// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "cpu/transposable_task.h"

namespace gossamer::cpu {

/// Runs a task with the widest vectors that this machine has (and GOSSAMER_MAX_ISA allows); all of
/// them find the same masks.
bool transposable_24(const TransposableTask& task);

}  // namespace gossamer::cpu
