// SPDX-License-Identifier: BSD-3-Clause
#include "io/text.h"

#include <fmt/format.h>

#include <cstddef>

namespace gossamer::io {
namespace {

constexpr std::size_t kShown = 120;

unsigned byte_at(std::string_view text, std::size_t i) {
  return static_cast<unsigned char>(text[i]);
}

bool continues(std::string_view text, std::size_t i) {
  return i < text.size() && (byte_at(text, i) & 0xC0u) == 0x80u;
}

// Bytes of the UTF-8 character that begins at `i`; 0 where there is none (RFC 3629, section 4).
std::size_t character_bytes(std::string_view text, std::size_t i) {
  const unsigned first = byte_at(text, i);
  if (first < 0x80) return 1;
  const std::size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4) return 0;
  for (std::size_t k = 1; k < bytes; ++k) {
    if (!continues(text, i + k)) return 0;
  }
  const unsigned second = byte_at(text, i + 1);
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool surrogate = first == 0xED && second > 0x9F;
  const bool past_unicode = first == 0xF4 && second > 0x8F;
  return overlong || surrogate || past_unicode ? 0 : bytes;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t bytes = character_bytes(text, i);
    const unsigned first = byte_at(text, i);
    if (bytes == 0 || first < 0x20 || first == 0x7f) {
      result += fmt::format("\\x{:02x}", first);
      ++i;
    } else {
      result += text.substr(i, bytes);
      i += bytes;
    }
  }
  return result;
}

std::string shown_name(std::string_view name) {
  std::size_t length = name.size();
  if (length > kShown) {
    length = kShown;
    while (length > 0 && continues(name, length)) --length;
  }
  std::string text = "'" + escaped(name.substr(0, length));
  if (length < name.size()) text += fmt::format("… ({} bytes)", name.size());
  return text + "'";
}

}  // namespace gossamer::io
