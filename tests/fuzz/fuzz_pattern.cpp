// SPDX-License-Identifier: BSD-3-Clause
// The pattern grammar: any text is refused with an Error or gives a pattern that its own text reads
// back to.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "gossamer/error.h"
#include "gossamer/packed_weight.h"
#include "gossamer/pattern.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace gossamer;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Pattern pattern = Pattern::parse(text);
    if (!(Pattern::parse(pattern.to_string()) == pattern)) std::abort();
    // The sizes of a weight of that pattern: an answer or an Error, never an overflow.
    packed_size_bytes(format_for(pattern), pattern, DType::kFloat32, 2, 100, 100, 0);
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
