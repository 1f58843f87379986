// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>

#include "gossamer/mask.h"
#include "gossamer/matmul.h"
#include "gossamer/parallel.h"
#include "gossamer/pattern.h"
#include "gossamer/tensor_view.h"

// What finds masks and corrected weights from the inputs that a layer sees. All matrices are
// row-major, batch 1, columns next to each other; float32 unless said. W is a weight [out, in],
// X the inputs [tokens, in], G = XᵀX their Gram matrix [in, in], H = G + δI the damped one. The
// loss of a row w that stands for a row w₀ is (w − w₀)·G·(w − w₀)ᵀ. Every function throws
// Error(kInvalidArgument) for shapes, dtypes or strides that differ from what is said here.
namespace gossamer {

/// What a solver borrows.
struct Solver {
  ParallelFor parallel;
  MatMul matmul;
};

/// gram += xᵀ·y. x [tokens, p] and y [tokens, q] are float32, gram [p, q] float32 or float64.
/// With float64, sums of at most 4096 tokens are taken in float32 and added up in float64.
void accumulate_gram(const ConstMatrixView& x, const ConstMatrixView& y, const MatrixView& gram,
                     const Solver& solver = {});

struct ObsOptions {
  /// What to select: `unstructured` (exact count over all rows of each block of columns), `fanin`
  /// (exact count of each row) or `N:M`. Nothing: the mask is given.
  std::optional<Pattern> pattern;
  std::int64_t block = 128;  ///< columns that are selected together
  /// Groups of M start anew after so many columns (the input channels of a convolution); 0: never.
  std::int64_t segment = 0;
};

/// The column sweep of SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1): drops
/// weights from left to right by the score w²/U_jj² and moves what each one carried to the columns
/// right of it.
///   weight  in: what is to be reproduced; out: the corrected weight, zero where dropped
///   factor  [in, in], upper triangular U with UᵀU = H⁻¹ and a positive diagonal
///   mask    bool; read where no pattern is given, else written
void obs_sweep(const MatrixView& weight, const ConstMatrixView& factor, const MatrixView& mask,
               const ObsOptions& options, const Solver& solver = {});

struct RefitOptions {
  int iterations = 30;
  double tolerance = 1e-5;  ///< a row is done when its residual is so small against its target
};

struct RefitResult {
  int iterations = 0;     ///< made, at most those allowed
  double residual = 0.0;  ///< the worst row's, against its target
};

/// Least squares on the support, all rows at once, by conjugate gradients that the diagonal of H
/// preconditions: minimises b·H·bᵀ − 2·b·tᵀ over rows b that are zero where the mask is.
///   weight  in: where to start, zero outside the mask; out: the solution
///   gram    H, symmetric positive definite
///   target  T [out, in]: W₀·H to reproduce W₀ on these inputs, W₀·(C + δI) with C = X₀ᵀX to
///           reproduce what W₀ gave on other inputs X₀
RefitResult refit_on_support(const MatrixView& weight, const ConstMatrixView& gram,
                             const ConstMatrixView& target, const ConstMatrixView& mask,
                             const RefitOptions& options, const Solver& solver = {});

struct AdmmOptions {
  Pattern pattern;
  Scope scope = Scope::kTensor;
  int iterations = 300;
  double penalty = 0.1;      ///< ρ at the start
  std::int64_t segment = 0;  ///< as in ObsOptions
};

struct AdmmResult {
  int iterations = 0;
  double penalty = 0.0;  ///< ρ at the end
  bool settled = false;  ///< the support stood still
};

/// Support and weight together by ADMM with the penalty's schedule of ALPS (Meng et al. 2024,
/// arXiv:2406.07831, section 3): minimises (b − w₀)·H·(b − w₀)ᵀ over b that have the pattern.
///   weight       in: W₀; out: the solution on the support
///   eigenvectors Q [in, in], one a column, and
///   eigenvalues  λ [1, in] > 0: H = Q·diag(λ)·Qᵀ. Scale inputs so that H has a diagonal of ones.
///   mask         bool, written
AdmmResult admm(const MatrixView& weight, const ConstMatrixView& eigenvectors,
                const ConstMatrixView& eigenvalues, const MatrixView& mask,
                const AdmmOptions& options, const Solver& solver = {});

struct SwapOptions {
  /// Swaps stay inside groups of so many columns (the M of N:M); 0: anywhere in the row.
  std::int64_t group = 0;
  std::int64_t segment = 0;    ///< as in ObsOptions
  std::int64_t max_swaps = 0;  ///< in each row; 0: until none lowers the loss
};

/// Swaps a kept and a dropped weight of a row while the best swap lowers z·G·zᵀ, z the dropped part
/// of the row (the 1-swap local search of SparseSwaps, arXiv:2512.10922). Changes the mask, never
/// the weight, and no count. Returns how many swaps were made.
std::int64_t swap_refine(const ConstMatrixView& weight, const ConstMatrixView& gram,
                         const MatrixView& mask, const SwapOptions& options,
                         const Solver& solver = {});

/// LAMP scores (Lee et al. 2021, arXiv:2010.07611, equation 4): w² over the sum of the squares of
/// all weights of the tensor that are not smaller, itself included; among equals the lower index
/// counts as the larger. weight [batch,] out × in of any float dtype, scores float64 of that shape.
void lamp_scores(const ConstMatrixView& weight, const MatrixView& scores);

/// A mask that is N:M and whose transpose is N:M too, with a high sum of scores. For 2:4 the
/// highest there is: the best of the 90 patterns of every 4×4 tile (Hu et al. 2024,
/// arXiv:2404.01847, section 3). For others tiles M×M are found by optimal transport with entropy
/// (Meng et al. 2025, "TSENOR", arXiv:2505.23949), rounded and improved by exchanges: within a few
/// thousandths of it. scores are float32 or float64 (read as float32), scores and mask (bool)
/// [batch,] out × in; rows and columns past the edge score 0. Deterministic. Throws
/// Error(kInvalidArgument) for 1 <= N <= M or M in {2, 4, 8, 16, 32} broken, and where a score is
/// NaN or infinite.
void transposable_mask(const ConstMatrixView& scores, int n, int m, const MatrixView& mask,
                       const ParallelFor& parallel = {});

}  // namespace gossamer
