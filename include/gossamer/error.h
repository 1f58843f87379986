// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <stdexcept>
#include <string>

namespace gossamer {

/// What kind of thing went wrong. The message says the rest: the thing, the value it had, what is
/// accepted, and a remedy.
enum class ErrorCode {
  kInvalidArgument,   ///< a shape, dtype, option or pattern text that cannot be right
  kPatternViolation,  ///< a weight that does not satisfy the pattern it was said to have
  kUnsupported,       ///< right in itself, but nothing here computes it
  kMalformedData,     ///< a file or packed weight whose bytes contradict each other
  kIo,                ///< the operating system refused: missing file, full disk, no permission
};

/// The one exception type that Gossamer throws (std::bad_alloc aside).
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace gossamer
