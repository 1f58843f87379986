// SPDX-License-Identifier: BSD-3-Clause
#include "cli/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "gossamer/error.h"

namespace gossamer::cli {
namespace {

void write(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
  throw Error(ErrorCode::kIo,
              fmt::format("cannot write to stdout: {}; check where it is redirected to",
                          std::error_code(errno, std::generic_category()).message()));
}

// Characters as a terminal counts them, wide and combining ones aside.
std::size_t width_of(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;
  }));
}

}  // namespace

void OutputOptions::add_to(CLI::App& command) {
  command.add_flag("--json", json, "Print one JSON document on stdout");
  command.add_flag("-q,--quiet", quiet, "Print nothing but errors (and the --json document)");
}

void print_line(std::string_view text) { write(std::string(text) + "\n"); }

void print_json(const Json& document) {
  write(document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void flush_output() {
  if (std::fflush(stdout) != 0) {
    throw Error(ErrorCode::kIo,
                fmt::format("cannot write to stdout: {}; check where it is redirected to",
                            std::error_code(errno, std::generic_category()).message()));
  }
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string bytes_text(std::int64_t bytes) {
  constexpr std::array kUnits{"B", "kB", "MB", "GB", "TB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string percent_text(std::int64_t part, std::int64_t whole) {
  if (whole == 0) return "-";
  return fmt::format("{:.2f} %", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string padded(std::string text, std::size_t width) {
  const std::size_t have = width_of(text);
  if (have < width) text.append(width - have, ' ');
  return text;
}

}  // namespace gossamer::cli
