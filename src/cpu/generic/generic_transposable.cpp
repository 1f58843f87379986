// SPDX-License-Identifier: BSD-3-Clause
// Transposable 2:4 masks, portable: four tiles in vectors that the compiler maps to what there is.
#include "cpu/transposable_task.h"

namespace gossamer {
namespace {

using Floats = float __attribute__((vector_size(16)));
using Codes = std::int32_t __attribute__((vector_size(16)));
constexpr int kLanes = 4;

inline void load_columns(const float* row, Floats (&columns)[4]) {
  for (int c = 0; c < 4; ++c) {
    columns[c] = Floats{row[c], row[4 + c], row[8 + c], row[12 + c]};
  }
}
inline Codes in_order(Codes codes) { return codes; }

#include "core/transposable_24.inl"
#include "cpu/transposable.inl"

}  // namespace

bool cpu::generic_transposable_24(const TransposableTask& task) { return transposable_24(task); }

}  // namespace gossamer
