// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <span>
#include <string>
#include <vector>

#include "gossamer/solve.h"

// What the solvers borrow from a library (Eigen) and the command needs of it.
namespace gossamer::cli {

/// Threads of the machine, and products by Eigen on them.
Solver machine_solver();

/// U upper triangular with UᵀU = (G + δI)⁻¹, row-major, as `obs_sweep` takes it.
///   gram     G, size × size, row-major, symmetric
///   damping  δ as a fraction of the mean of diag(G); raised tenfold, up to 1, until G + δI is
///            positive definite
/// Throws Error(kInvalidArgument) that names `name` where none is.
std::vector<float> inverse_factor(std::span<const double> gram, std::int64_t size, double& damping,
                                  const std::string& name);

/// Σ over rows w of w·G·wᵀ; rows [count, size], row-major.
double energy(std::span<const float> rows, std::span<const double> gram, std::int64_t size);

}  // namespace gossamer::cli
