// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/convert.h"

#include "gossamer/machine.h"

namespace gossamer::cpu {

RowCodec row_codec(std::int64_t element_bytes) {
#if defined(__x86_64__)
  if (host_machine().has(kIsaAvx512 | kIsaAvx512Vbmi2)) return avx512vbmi2_row_codec(element_bytes);
  if (host_machine().has(kIsaAvx2)) return avx2_row_codec(element_bytes);
#endif
  return generic_row_codec(element_bytes);
}

}  // namespace gossamer::cpu
