// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "cpu/convert_task.h"

namespace gossamer::cpu {

/// The quickest codec of this machine (and of GOSSAMER_MAX_ISA) for elements of 2 or 4 bytes.
RowCodec row_codec(std::int64_t element_bytes);

}  // namespace gossamer::cpu
