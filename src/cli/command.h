// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace gossamer::cli {

/// Exit statuses.
inline constexpr int kOk = 0;
inline constexpr int kCheckFailed = 1;
inline constexpr int kBadInput = 2;

/// What a subcommand does when it was named; returns the exit status.
using Action = std::function<int()>;

/// Each adds its subcommand to the application and stores in `action` what to do.
void add_inspect(CLI::App& app, Action& action);
void add_prune(CLI::App& app, Action& action);
void add_pack(CLI::App& app, Action& action);
void add_unpack(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);

}  // namespace gossamer::cli
