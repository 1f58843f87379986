// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>
#include <string_view>

namespace gossamer::io {

/// Text from a file as a terminal or a JSON document may see it: control characters and bytes that
/// are not UTF-8 become \xNN.
std::string escaped(std::string_view text);

/// The same for an error message: in single quotes, cut after 120 bytes.
std::string shown_name(std::string_view name);

}  // namespace gossamer::io
