// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/registration.h"

namespace gossamer {

void register_cpu_kernels() {
  cpu::register_generic_linear();
  cpu::register_spmm_kcsr();
  cpu::register_spmm_rowpairs();
  cpu::register_spmm_bitmask();
  cpu::register_spmm_blocks();
  cpu::register_linear_nm24();
  cpu::register_linear_bitmask();
  cpu::register_linear_blocks();
  cpu::register_linear_tiles();
}

}  // namespace gossamer
