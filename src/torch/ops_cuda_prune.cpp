// SPDX-License-Identifier: BSD-3-Clause
// Pruning on a GPU: the parts that would be thousands of torch operations, or slow ones.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "cuda/prune/prune.h"
#include "cuda/transfer.h"
#include "torch/ops_cuda.h"

namespace gossamer::door::cuda_ops {
namespace {

constexpr std::int64_t kMaxGroup = 64;

void check_scores(const Tensor& scores) {
  const DType dtype = dtype_of(scores, "scores");
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
    refuse(fmt::format("scores are {}: float32 and float64 are accepted", dtype_name(dtype)));
  }
  if (scores.dim() != 2 && scores.dim() != 3) {
    refuse(fmt::format("scores have shape {}: [out, in] and [batch, out, in] are accepted",
                       shape_text(sizes_of(scores))));
  }
}

std::int64_t checked_segment(std::int64_t segment, std::int64_t cols) {
  if (segment == 0) return cols;
  if (segment < 0 || cols % segment != 0) {
    refuse(fmt::format("segment {}: 0 or a divisor of the {} columns is accepted", segment, cols));
  }
  return segment;
}

void check_group(std::int64_t n, std::int64_t m) {
  if (n >= 1 && n <= m && m <= kMaxGroup) return;
  refuse(fmt::format("{}:{}: 1 <= N <= M <= {} is accepted", n, m, kMaxGroup));
}

/// Of a matrix whose rows are contiguous.
std::int64_t row_stride(const Tensor& matrix, const char* name, const Tensor& weight, DType dtype) {
  if (!matrix.is_cuda() || matrix.get_device_index() != weight.get_device_index()) {
    refuse(fmt::format("{} is not on the device of the weight; move it with .to(weight.device)",
                       name));
  }
  if (matrix.dim() != 2 || dtype_of(matrix, name) != dtype ||
      (matrix.size(1) > 1 && matrix.stride(1) != 1)) {
    refuse(fmt::format("{} has shape {} and dtype {}: a {} matrix with contiguous rows is accepted",
                       name, shape_text(sizes_of(matrix)), dtype_name(dtype_of(matrix, name)),
                       dtype_name(dtype)));
  }
  return matrix.stride(0);
}

/// By way of the CPU, for tiles that no kernel of the GPU solves.
Tensor transposable_on_cpu(const Tensor& scores, std::int64_t n, std::int64_t m) {
  using torch::stable::detail::from;
  const Tensor host =
      torch::stable::to(scores, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  std::array<StableIValue, 3> stack{from(host), from(n), from(m)};
  call_operator("gossamer::transposable_mask", stack.data());
  return torch::stable::to(torch::stable::detail::to<Tensor>(stack[0]), scores.device());
}

}  // namespace

Tensor select_groups(const Tensor& scores, std::int64_t n, std::int64_t m, std::int64_t segment) {
  return guarded([&] {
    const OnDevice device(scores);
    check_scores(scores);
    check_group(n, m);
    const Tensor rows = as_contiguous(scores);
    Tensor mask = empty_on(scores, sizes_of(scores), DType::kBool);
    cuda::GroupScores groups;
    groups.scores = rows.const_data_ptr();
    groups.dtype = dtype_of(scores, "scores");
    groups.cols = sizes_of(scores).back();
    groups.rows = groups.cols == 0 ? 0 : scores.numel() / groups.cols;
    groups.n = static_cast<int>(n);
    groups.m = static_cast<int>(m);
    groups.segment = checked_segment(segment, groups.cols);
    cuda::select_groups(groups, static_cast<bool*>(mask.mutable_data_ptr()), device.stream());
    return mask;
  });
}

Tensor transposable_mask(const Tensor& scores, std::int64_t n, std::int64_t m) {
  return guarded([&] {
    const OnDevice device(scores);
    check_scores(scores);
    const bool here = n == 2 && m == 4;
    if (!here) return transposable_on_cpu(scores, n, m);
    const Tensor whole = as_contiguous(scores);
    Tensor mask = empty_on(scores, sizes_of(scores), DType::kBool);
    cuda::TileScores tiles;
    tiles.scores = whole.const_data_ptr();
    tiles.dtype = dtype_of(scores, "scores");
    const auto sizes = sizes_of(scores);
    tiles.batch = sizes.size() == 3 ? sizes[0] : 1;
    tiles.rows = sizes[sizes.size() - 2];
    tiles.cols = sizes.back();
    const std::array<std::int64_t, 1> one{1};
    const Tensor verdict = empty_on(scores, one, DType::kInt64);
    auto* const bad_row = static_cast<std::uint64_t*>(verdict.mutable_data_ptr());
    cuda::transposable_24(tiles, static_cast<bool*>(mask.mutable_data_ptr()), bad_row,
                          device.stream());
    std::uint64_t row = 0;
    cuda::read_device(&row, bad_row, sizeof(row), device.stream());
    if (row != cuda::kNoBadRow) {
      refuse(
          fmt::format("transposable {}:{}: row {} has a score that is NaN or infinite; scores must "
                      "be finite numbers",
                      n, m, row));
    }
    return mask;
  });
}

Tensor obs_sweep_block_(const Tensor& weight, const Tensor& factor, const Tensor& mask,
                        std::int64_t begin, std::int64_t end, std::int64_t n, std::int64_t m,
                        std::int64_t segment) {
  return guarded([&] {
    const OnDevice device(weight);
    cuda::SweptBlock block;
    block.weight_stride = row_stride(weight, "weight", weight, DType::kFloat32);
    block.factor_stride = row_stride(factor, "factor", weight, DType::kFloat32);
    block.mask_stride = row_stride(mask, "mask", weight, DType::kBool);
    const std::int64_t rows = weight.size(0);
    const std::int64_t cols = weight.size(1);
    if (factor.size(0) != cols || factor.size(1) != cols || mask.size(0) != rows ||
        mask.size(1) != cols) {
      refuse(fmt::format("factor is {} and mask {}, expected [{}, {}] and [{}, {}]",
                         shape_text(sizes_of(factor)), shape_text(sizes_of(mask)), cols, cols, rows,
                         cols));
    }
    if (begin < 0 || end <= begin || end > cols || end - begin > cuda::kMaxSweptColumns) {
      refuse(fmt::format("columns {} to {} of {}: 1 to {} columns are swept together", begin, end,
                         cols, cuda::kMaxSweptColumns));
    }
    if (m != 0) check_group(n, m);
    block.weight = static_cast<float*>(weight.mutable_data_ptr()) + begin;
    block.factor =
        static_cast<const float*>(factor.const_data_ptr()) + begin * block.factor_stride + begin;
    block.mask = static_cast<bool*>(mask.mutable_data_ptr()) + begin;
    block.rows = rows;
    block.width = static_cast<int>(end - begin);
    block.n = static_cast<int>(n);
    block.m = static_cast<int>(m);
    block.begin = begin;
    block.segment = checked_segment(segment, cols);
    const std::array<std::int64_t, 2> sizes{rows, end - begin};
    Tensor owed = empty_on(weight, sizes, DType::kFloat32);
    block.owed = static_cast<float*>(owed.mutable_data_ptr());
    cuda::sweep_block(block, device.stream());
    return owed;
  });
}

}  // namespace gossamer::door::cuda_ops
