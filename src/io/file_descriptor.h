// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace gossamer::io {

/// Throws Error(kIo): "<action> '<path>': <the system's words for errno>; <remedy>".
[[noreturn]] void throw_errno(const std::string& action, const std::string& path, int error);

/// An open file, closed when it goes out of scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  /// Closes now; errno of a failure (a network file system may report lost writes only here), or 0.
  int close();

 private:
  int fd_;
};

/// Writes all bytes at the current position; `path` is for the message. Throws Error(kIo).
void write_all(const FileDescriptor& file, std::span<const std::byte> bytes,
               const std::string& path);

}  // namespace gossamer::io
