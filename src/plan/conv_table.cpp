// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <vector>

#include "cpu/conv_rows.h"
#include "gossamer/conv.h"

namespace gossamer {

std::span<const Conv2dKernel> conv2d_kernels() {
  static const std::vector<Conv2dKernel> rows = [] {
    std::vector<Conv2dKernel> all = cpu::conv2d_kcsr_rows();
    for (const Conv2dKernel& row : cpu::conv2d_int8_rows()) all.push_back(row);
    std::sort(all.begin(), all.end(),
              [](const Conv2dKernel& a, const Conv2dKernel& b) { return a.name < b.name; });
    return all;
  }();
  return rows;
}

const Conv2dKernel* find_conv2d_kernel(std::string_view name) {
  for (const Conv2dKernel& row : conv2d_kernels()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

}  // namespace gossamer
