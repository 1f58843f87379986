// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/convert_task.h"

namespace gossamer {
namespace {

#include "cpu/convert.inl"

}  // namespace

cpu::RowCodec cpu::generic_row_codec(std::int64_t element_bytes) {
  if (element_bytes == 2) {
    using Raw = std::uint16_t;
    return {mark<Raw>, compress<Raw>, expand<Raw>, spread};
  }
  using Raw = std::uint32_t;
  return {mark<Raw>, compress<Raw>, expand<Raw>, spread};
}

}  // namespace gossamer
