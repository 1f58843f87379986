// SPDX-License-Identifier: BSD-3-Clause
#include "io/text.h"

#include <fmt/format.h>

namespace gossamer::io {
namespace {

constexpr std::size_t kShown = 120;

}  // namespace

std::string shown_name(std::string_view name) {
  std::string text = "'";
  std::size_t length = name.size();
  if (length > kShown) {
    length = kShown;
    // Not in the middle of a UTF-8 character.
    while (length > 0 && (static_cast<unsigned char>(name[length]) & 0xC0u) == 0x80u) --length;
  }
  for (const char c : name.substr(0, length)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      text += fmt::format("\\x{:02x}", byte);
    } else {
      text += c;
    }
  }
  if (length < name.size()) text += fmt::format("… ({} bytes)", name.size());
  return text + "'";
}

}  // namespace gossamer::io
