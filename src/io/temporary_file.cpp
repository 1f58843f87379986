// SPDX-License-Identifier: BSD-3-Clause
#include "io/temporary_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <random>
#include <system_error>

#include "gossamer/error.h"
#include "io/text.h"

namespace gossamer::io {
namespace {

constexpr int kAttempts = 100;
constexpr ::mode_t kMode = 0666;  // less the user's umask

std::string followed(const std::string& path) {
  std::error_code error;
  const auto real = std::filesystem::canonical(path, error);
  return error ? path : real.string();
}

std::string descriptor_path(const FileDescriptor& file) {
  return fmt::format("/proc/self/fd/{}", file.get());
}

}  // namespace

TemporaryFile::TemporaryFile(const std::string& target) : target_(followed(target)) {
  const std::filesystem::path path(target_);
  directory_ = path.has_parent_path() ? path.parent_path().string() : ".";
  struct stat old{};
  const bool exists = ::stat(target_.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) {
    throw Error(ErrorCode::kIo,
                fmt::format("cannot write {}: it is {}; name a file", shown_name(target_),
                            S_ISDIR(old.st_mode) ? "a directory" : "no regular file"));
  }
  if (path.filename().empty()) {
    throw Error(ErrorCode::kIo, fmt::format("cannot write {}: the path ends without a file name",
                                            shown_name(target_)));
  }
  file_ = create_unnamed();
  if (!file_.valid()) file_ = create_named(name_);
  // A file that is replaced keeps its permissions; failing to copy them (another owner's file) is
  // no harm.
  if (exists && ::fchmod(file_.get(), old.st_mode & 07777) != 0) errno = 0;
}

TemporaryFile::~TemporaryFile() {
  if (!name_.empty()) ::unlink(name_.c_str());
}

// Not every file system has unnamed files, and giving one its name later needs /proc.
FileDescriptor TemporaryFile::create_unnamed() const {
#ifdef O_TMPFILE
  FileDescriptor file(::open(directory_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, kMode));
  if (file.valid() && ::access(descriptor_path(file).c_str(), F_OK) == 0) return file;
#endif
  return FileDescriptor();
}

std::string TemporaryFile::unused_name() const {
  std::random_device random;
  const auto file_name = std::filesystem::path(target_).filename().string();
  // A name that is as long as the file system allows must not make the temporary one too long.
  return fmt::format("{}/.{}.{:08x}{:08x}.tmp", directory_, file_name.substr(0, 200), random(),
                     random());
}

FileDescriptor TemporaryFile::create_named(std::string& name) const {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string candidate = unused_name();
    FileDescriptor file(::open(candidate.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, kMode));
    if (file.valid()) {
      name = std::move(candidate);
      return file;
    }
    if (errno != EEXIST) break;
  }
  throw_errno("cannot write", target_, errno);
}

FileDescriptor TemporaryFile::scratch() const {
  FileDescriptor file = create_unnamed();
  if (file.valid()) return file;
  std::string name;
  file = create_named(name);
  ::unlink(name.c_str());
  return file;
}

void TemporaryFile::link_name() {
  const std::string source = descriptor_path(file_);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string candidate = unused_name();
    if (::linkat(AT_FDCWD, source.c_str(), AT_FDCWD, candidate.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      name_ = std::move(candidate);
      return;
    }
    if (errno != EEXIST) break;
  }
  throw_errno("cannot write", target_, errno);
}

void TemporaryFile::commit() {
  if (::fsync(file_.get()) != 0) throw_errno("cannot write", target_, errno);
  if (name_.empty()) link_name();
  if (const int error = file_.close(); error != 0) throw_errno("cannot write", target_, error);
  if (::rename(name_.c_str(), target_.c_str()) != 0) throw_errno("cannot replace", target_, errno);
  name_.clear();
  // The new name itself must outlive a power cut. Some file systems refuse to sync a directory; the
  // file is in place all the same.
  const FileDescriptor directory(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.valid() && ::fsync(directory.get()) != 0 && errno == EIO) {
    throw_errno("cannot sync the directory of", target_, errno);
  }
}

}  // namespace gossamer::io
