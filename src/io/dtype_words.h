// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace gossamer::io {

/// Bits of one element of a safetensors dtype word, types that Gossamer only carries through
/// included; nothing where the word is unknown.
std::optional<std::int64_t> dtype_word_bits(std::string_view word);

/// Bytes of a tensor; nothing where the product overflows or ends inside a byte.
std::optional<std::int64_t> tensor_bytes(std::int64_t bits, std::span<const std::int64_t> shape);

}  // namespace gossamer::io
