// SPDX-License-Identifier: BSD-3-Clause
#include "prune/product.h"

#include <algorithm>
#include <vector>

namespace gossamer::detail {
namespace {

constexpr std::int64_t kDepthBlock = 128;
constexpr std::int64_t kColBlock = 256;

/// One of the operands with its rows contiguous, as the loops below read it.
std::vector<float> transposed(const float* from, std::int64_t stride, std::int64_t rows,
                              std::int64_t cols) {
  std::vector<float> to(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      to[static_cast<std::size_t>(r * cols + c)] = from[c * stride + r];
    }
  }
  return to;
}

/// Rows [begin, end) of C. A block of B stays in cache while every row of C passes over it.
void multiply_rows(const MatMulArgs& m, std::int64_t begin, std::int64_t end) {
  std::fill(m.c + begin * m.cols, m.c + end * m.cols, 0.0f);
  for (std::int64_t depth = 0; depth < m.depth; depth += kDepthBlock) {
    const std::int64_t depth_end = std::min(depth + kDepthBlock, m.depth);
    for (std::int64_t col = 0; col < m.cols; col += kColBlock) {
      const std::int64_t count = std::min(kColBlock, m.cols - col);
      for (std::int64_t r = begin; r < end; ++r) {
        float* const c = m.c + r * m.cols + col;
        for (std::int64_t k = depth; k < depth_end; ++k) {
          const float a = m.a[r * m.a_stride + k];
          const float* const b = m.b + k * m.b_stride + col;
          for (std::int64_t i = 0; i < count; ++i) c[i] += a * b[i];
        }
      }
    }
  }
}

}  // namespace

void multiply(const Solver& solver, const MatMulArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  if (solver.matmul.run != nullptr) {
    solver.matmul.run(solver.matmul.self, args);
    return;
  }
  MatMulArgs plain = args;
  std::vector<float> a;
  std::vector<float> b;
  if (args.a_transposed) {
    a = transposed(args.a, args.a_stride, args.rows, args.depth);
    plain.a = a.data();
    plain.a_stride = args.depth;
  }
  if (args.b_transposed) {
    b = transposed(args.b, args.b_stride, args.depth, args.cols);
    plain.b = b.data();
    plain.b_stride = args.cols;
  }
  parallel_for(solver.parallel, plain.rows,
               [&](std::int64_t begin, std::int64_t end) { multiply_rows(plain, begin, end); });
}

}  // namespace gossamer::detail
