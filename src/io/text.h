// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>
#include <string_view>

namespace gossamer::io {

/// A name from a file as an error message may show it: in single quotes, control characters escaped
/// (a file must not drive the terminal), cut after 120 bytes.
std::string shown_name(std::string_view name);

}  // namespace gossamer::io
