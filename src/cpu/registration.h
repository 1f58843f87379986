// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <string_view>

#include "gossamer/linear.h"

namespace gossamer::cpu {

/// A row of the kernel table whose weights and activations have one dtype, without its functions.
inline LinearKernel linear_row(std::string_view name, std::uint32_t needs, Layout layout,
                               DType dtype) {
  LinearKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = layout;
  kernel.weight_dtype = dtype;
  kernel.activation_dtype = dtype;
  return kernel;
}

// Each driver adds its rows to the kernel table.
void register_generic_linear();
void register_spmm_kcsr();
void register_spmm_rowpairs();
void register_spmm_bitmask();
void register_spmm_blocks();
void register_linear_nm24();
void register_linear_bitmask();
void register_linear_blocks();
void register_linear_tiles();

}  // namespace gossamer::cpu

namespace gossamer {

/// Adds every CPU kernel to the table; called once, by its first reader. An explicit call, because
/// a linker drops objects of a static library that nothing refers to.
void register_cpu_kernels();

}  // namespace gossamer
