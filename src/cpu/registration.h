// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace gossamer::cpu {

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
