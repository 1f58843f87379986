// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>

#include "io/file_descriptor.h"

namespace gossamer::io {

/// A file that takes the place of `target` when it is complete. Where the file system can
/// (O_TMPFILE) it has no name until then, so that not even a killed process leaves anything behind;
/// elsewhere it is `.<name>.<random>.tmp` in the target's directory and removed by the destructor.
class TemporaryFile {
 public:
  /// Throws Error(kIo) where the target's directory does not take files or the target is no regular
  /// file.
  explicit TemporaryFile(const std::string& target);
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile();

  const FileDescriptor& file() const { return file_; }
  /// What messages call it: the target.
  const std::string& path() const { return target_; }
  /// A second file in the same directory that never gets a name.
  FileDescriptor scratch() const;
  /// Syncs, takes the target's place in one step (an old target stays whole until then), syncs the
  /// directory.
  void commit();

 private:
  FileDescriptor create_unnamed() const;
  FileDescriptor create_named(std::string& name) const;
  std::string unused_name() const;
  void link_name();

  std::string target_;  // symbolic links followed, so that a link stays a link
  std::string directory_;
  std::string name_;  // "" while the file has none
  FileDescriptor file_;
};

}  // namespace gossamer::io
