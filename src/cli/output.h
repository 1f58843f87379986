// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

namespace gossamer::cli {

using Json = nlohmann::ordered_json;

/// Flags that every subcommand has.
struct OutputOptions {
  bool json = false;
  bool quiet = false;

  void add_to(CLI::App& command);
  bool lines() const { return !json && !quiet; }
};

/// Writes a line to stdout; throws Error(kIo) where stdout does not take it.
void print_line(std::string_view text);

/// Writes the one JSON document of a `--json` run.
void print_json(const Json& document);

/// Pushes out what stdout still holds; throws Error(kIo) where that fails.
void flush_output();

/// "[512, 784]".
std::string shape_text(std::span<const std::int64_t> shape);

/// "1.2 GB", in powers of 1000.
std::string bytes_text(std::int64_t bytes);

/// "87.5 %"; "-" of nothing.
std::string percent_text(std::int64_t part, std::int64_t whole);

/// `text` and as many spaces as make it `width` characters wide.
std::string padded(std::string text, std::size_t width);

}  // namespace gossamer::cli
