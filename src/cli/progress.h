// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace gossamer::cli {

/// A bar on stderr where that is a terminal, and nothing elsewhere. It is wiped before a line is
/// printed and when it goes out of scope.
class Progress {
 public:
  Progress(std::string label, std::int64_t total_bytes, bool wanted);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  void advance(std::int64_t bytes);
  void wipe();

 private:
  void draw();

  std::string label_;
  std::int64_t total_;
  std::int64_t done_ = 0;
  bool shown_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace gossamer::cli
