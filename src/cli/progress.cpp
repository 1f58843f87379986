// SPDX-License-Identifier: BSD-3-Clause
#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace gossamer::cli {
namespace {

constexpr int kWidth = 32;
constexpr auto kInterval = std::chrono::milliseconds(100);

}  // namespace

Progress::Progress(std::string label, std::int64_t total_bytes, bool wanted)
    : label_(std::move(label)),
      total_(total_bytes),
      shown_(wanted && total_bytes > 0 && ::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { wipe(); }

void Progress::advance(std::int64_t bytes) {
  done_ += bytes;
  const auto now = std::chrono::steady_clock::now();
  if (!shown_ || now - last_ < kInterval) return;
  last_ = now;
  draw();
}

void Progress::draw() {
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const int filled = static_cast<int>(share * kWidth);
  std::string bar;
  for (int i = 0; i < kWidth; ++i) bar += i < filled ? "━" : "─";
  // A terminal that takes no more is no reason to stop.
  const std::string line = fmt::format("\r{} {} {:3.0f} % of {:.1f} MB", label_, bar, 100 * share,
                                       static_cast<double>(total_) / 1e6);
  std::fwrite(line.data(), 1, line.size(), stderr);
  drawn_ = true;
}

void Progress::wipe() {
  if (!std::exchange(drawn_, false)) return;
  std::fputs("\r\x1b[K", stderr);
}

}  // namespace gossamer::cli
