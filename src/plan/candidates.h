// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <vector>

#include "gossamer/linear.h"
#include "plan/decide.h"
#include "plan/probes.h"

namespace gossamer::plan {

/// A row that computes the weight, with its predicted seconds at every probe, the door's overhead
/// included.
struct ModelledRow {
  const LinearKernel* row = nullptr;
  std::array<double, kProbeCount> seconds{};
};

/// The predictions of all rows as evidence, beside `dense.seconds` or a built-in dense model.
/// Deterministic.
Evidence model_rows(const std::vector<ModelledRow>& rows, const PackedView& weight,
                    const LinearDesc& desc, const Machine& machine, const DensePeer& dense,
                    const PlanOptions& options);

/// A row and the buckets in which the cost model finds it promising.
struct Entrant {
  ModelledRow model;
  std::array<bool, kTokenBuckets> in_bucket{};
};

/// Rows within 2x of the model's best, in layouts that are as a whole or that hold the best row
/// somewhere; of every such layout its best row in each bucket too, since a layout is judged by all
/// buckets. The best layout's rows first.
std::vector<Entrant> promising(const std::vector<ModelledRow>& rows);

}  // namespace gossamer::plan
