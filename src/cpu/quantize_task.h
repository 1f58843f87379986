// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer::cpu {

// One token of `count` inputs; the scale is returned.
float avx2_quantize(const float* x, std::int64_t count, std::int8_t* q);
float avx512_quantize(const float* x, std::int64_t count, std::int8_t* q);

}  // namespace gossamer::cpu
