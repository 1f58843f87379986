// SPDX-License-Identifier: BSD-3-Clause
#include "io/file_descriptor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "gossamer/error.h"
#include "io/text.h"

namespace gossamer::io {
namespace {

const char* remedy(int error) {
  switch (error) {
    case ENOENT:
      return "check the path";
    case EACCES:
    case EPERM:
      return "check the permissions of the file and its directory";
    case ENOSPC:
    case EDQUOT:
      return "free some space or write to another disk";
    case EFBIG:
      return "the file size limit is reached: raise it (ulimit -f) or write to another disk";
    case EROFS:
      return "write to another disk";
    case ENOTDIR:
      return "a part of the path is a file";
    case EMFILE:
    case ENFILE:
      return "close some files or raise the limit (ulimit -n)";
    case ENOMEM:
      return "the address space is full: raise the limit (ulimit -v)";
    default:
      return "check the disk";
  }
}

}  // namespace

void throw_errno(const std::string& action, const std::string& path, int error) {
  throw Error(ErrorCode::kIo, fmt::format("{} {}: {}; {}", action, shown_name(path),
                                          std::error_code(error, std::generic_category()).message(),
                                          remedy(error)));
}

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileDescriptor::~FileDescriptor() { close(); }

int FileDescriptor::close() {
  if (fd_ < 0) return 0;
  return ::close(std::exchange(fd_, -1)) == 0 ? 0 : errno;
}

void write_all(const FileDescriptor& file, std::span<const std::byte> bytes,
               const std::string& path) {
  // Linux writes at most 2 GiB at once; smaller parts also let a signal through between them.
  constexpr std::size_t kPart = std::size_t{1} << 26;
  while (!bytes.empty()) {
    const ssize_t written = ::write(file.get(), bytes.data(), std::min(bytes.size(), kPart));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_errno("cannot write", path, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

}  // namespace gossamer::io
