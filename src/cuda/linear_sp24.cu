// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/linear_sp24.h"

#include <vector>

#include "cuda/sm90/rows.h"

namespace gossamer::cuda {

std::span<const LinearSp24Kernel> linear_sp24_kernels() {
  static const std::vector<LinearSp24Kernel> rows = [] {
    std::vector<LinearSp24Kernel> all;
    sm90::add_decode_rows(all);
    sm90::add_gemm_bf16_rows(all);
    sm90::add_gemm_f16_rows(all);
    return all;
  }();
  return rows;
}

const LinearSp24Kernel* find_linear_sp24(std::string_view name) {
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

const LinearSp24Kernel* choose_linear_sp24(const LinearSp24Args& args, const DeviceInfo& device) {
  const LinearSp24Kernel* best = nullptr;
  double least = 0.0;
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (row.dtype != args.dtype || !row.refuses(row, args, device).empty()) continue;
    const double seconds = row.seconds(row, args, device);
    if (best == nullptr || seconds < least) {
      best = &row;
      least = seconds;
    }
  }
  return best;
}

}  // namespace gossamer::cuda
