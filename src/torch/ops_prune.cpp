// SPDX-License-Identifier: BSD-3-Clause
// The solvers on torch's threads and torch's BLAS. Arguments come back changed as new tensors; the
// accumulation of Gram matrices alone writes where it is told.
#include <torch/csrc/stable/ops.h>

#include <array>

#include "gossamer/solve.h"
#include "torch/ops.h"

namespace gossamer::door {
namespace {

/// Memory that the core owns as a tensor, for as long as one product takes.
Tensor borrow(const float* data, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  const std::array<std::int64_t, 2> sizes{rows, cols};
  const std::array<std::int64_t, 2> strides{stride, 1};
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob_v2(
      const_cast<float*>(data), 2, sizes.data(), strides.data(), 0, shim_dtype(DType::kFloat32),
      aoti_torch_device_type_cpu(), 0, &handle, aoti_torch_layout_strided(), nullptr, 0));
  return Tensor(handle);
}

Tensor operand(const float* data, std::int64_t rows, std::int64_t cols, std::int64_t stride,
               bool is_transposed) {
  if (!is_transposed) return borrow(data, rows, cols, stride);
  return torch::stable::transpose(borrow(data, cols, rows, stride), 0, 1);
}

void multiply(void*, const MatMulArgs& m) {
  const Tensor a = operand(m.a, m.rows, m.depth, m.a_stride, m.a_transposed);
  const Tensor b = operand(m.b, m.depth, m.cols, m.b_stride, m.b_transposed);
  const Tensor c = borrow(m.c, m.rows, m.cols, m.cols);
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(c)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  // The call's result is C again; taking it releases its reference.
  torch::stable::detail::to<Tensor>(stack[0]);
}

Solver torch_solver() {
  Solver solver;
  solver.parallel = torch_threads();
  solver.matmul.run = multiply;
  return solver;
}

Tensor copy_of(const Tensor& tensor) { return torch::stable::clone(as_contiguous(tensor)); }

}  // namespace

void gram_(const Tensor& gram, const Tensor& x, const Tensor& y) {
  guarded([&] {
    const Tensor left = as_contiguous(x);
    const Tensor right = as_contiguous(y);
    accumulate_gram(matrix_view(left, "x"), matrix_view(right, "y"),
                    mutable_matrix_view(gram, "gram"), torch_solver());
    return 0;
  });
}

std::tuple<Tensor, Tensor> obs_sweep(const Tensor& weight, const Tensor& factor,
                                     const std::optional<Tensor>& mask, const std::string& pattern,
                                     std::int64_t block, std::int64_t segment) {
  return guarded([&] {
    if (mask.has_value() == !pattern.empty()) {
      refuse("obs_sweep takes a mask or a pattern: pass one of them, and None or '' for the other");
    }
    Tensor corrected = copy_of(weight);
    const Tensor triangle = as_contiguous(factor);
    Tensor kept = mask ? copy_of(*mask) : empty(sizes_of(weight), DType::kBool);
    ObsOptions options;
    if (!mask) options.pattern = Pattern::parse(pattern);
    options.block = block;
    options.segment = segment;
    gossamer::obs_sweep(mutable_matrix_view(corrected, "weight"), matrix_view(triangle, "factor"),
                        mutable_matrix_view(kept, "mask"), options, torch_solver());
    return std::make_tuple(corrected, kept);
  });
}

std::tuple<Tensor, std::int64_t, double> refit(const Tensor& weight, const Tensor& gram,
                                               const Tensor& target, const Tensor& mask,
                                               std::int64_t iterations, double tolerance) {
  return guarded([&] {
    Tensor fitted = copy_of(weight);
    const Tensor matrix = as_contiguous(gram);
    const Tensor goal = as_contiguous(target);
    const Tensor kept = as_contiguous(mask);
    const RefitResult result = refit_on_support(
        mutable_matrix_view(fitted, "weight"), matrix_view(matrix, "gram"),
        matrix_view(goal, "target"), matrix_view(kept, "mask"),
        {.iterations = static_cast<int>(iterations), .tolerance = tolerance}, torch_solver());
    return std::make_tuple(fitted, std::int64_t{result.iterations}, result.residual);
  });
}

std::tuple<Tensor, Tensor, std::int64_t, double, bool> admm(
    const Tensor& weight, const Tensor& eigenvectors, const Tensor& eigenvalues,
    const std::string& pattern, const std::string& scope, std::int64_t iterations, double penalty,
    std::int64_t segment) {
  return guarded([&] {
    Tensor solution = copy_of(weight);
    Tensor kept = empty(sizes_of(weight), DType::kBool);
    const Tensor vectors = as_contiguous(eigenvectors);
    const Tensor values = as_contiguous(eigenvalues);
    AdmmOptions options;
    options.pattern = Pattern::parse(pattern);
    options.scope = parse_scope(scope);
    options.iterations = static_cast<int>(iterations);
    options.penalty = penalty;
    options.segment = segment;
    const AdmmResult result =
        gossamer::admm(mutable_matrix_view(solution, "weight"),
                       matrix_view(vectors, "eigenvectors"), matrix_view(values, "eigenvalues"),
                       mutable_matrix_view(kept, "mask"), options, torch_solver());
    return std::make_tuple(solution, kept, std::int64_t{result.iterations}, result.penalty,
                           result.settled);
  });
}

std::tuple<Tensor, std::int64_t> swap_refine(const Tensor& weight, const Tensor& gram,
                                             const Tensor& mask, std::int64_t group,
                                             std::int64_t segment, std::int64_t max_swaps) {
  return guarded([&] {
    const Tensor values = as_contiguous(weight);
    const Tensor matrix = as_contiguous(gram);
    Tensor kept = copy_of(mask);
    const std::int64_t swaps = gossamer::swap_refine(
        matrix_view(values, "weight"), matrix_view(matrix, "gram"),
        mutable_matrix_view(kept, "mask"),
        {.group = group, .segment = segment, .max_swaps = max_swaps}, torch_solver());
    return std::make_tuple(kept, swaps);
  });
}

Tensor lamp_scores(const Tensor& weight) {
  return guarded([&] {
    Tensor scores = empty(sizes_of(weight), DType::kFloat64);
    gossamer::lamp_scores(matrix_view(weight, "weight"), mutable_matrix_view(scores, "scores"));
    return scores;
  });
}

Tensor transposable_mask(const Tensor& scores, std::int64_t n, std::int64_t m) {
  return guarded([&] {
    Tensor mask = empty(sizes_of(scores), DType::kBool);
    gossamer::transposable_mask(matrix_view(scores, "scores"), static_cast<int>(n),
                                static_cast<int>(m), mutable_matrix_view(mask, "mask"),
                                torch_threads());
    return mask;
  });
}

}  // namespace gossamer::door
