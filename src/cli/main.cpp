// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>
#include <malloc.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "gossamer/error.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

int fail(std::string_view message) {
  const std::string line = fmt::format("gossamer: error: {}\n", message);
  std::fwrite(line.data(), 1, line.size(), stderr);
  return kBadInput;
}

// Ends as the signal would have ended it, so that a shell's loop stops too.
int end_by(int signal) {
  ::signal(signal, SIG_DFL);
  ::raise(signal);
  return kBadInput;
}

// What help and version ask for is no error; everything else is bad usage, whatever CLI11 would
// return.
int report_usage(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);
  const auto named = app.get_subcommands();
  return fail(fmt::format("{}; see gossamer {}--help", io::escaped(error.what()),
                          named.empty() ? "" : named.front()->get_name() + " "));
}

bool has_subcommand(const CLI::App& app, const std::string& name) {
  const auto all = app.get_subcommands([](const CLI::App*) { return true; });
  return std::any_of(all.begin(), all.end(),
                     [&](const auto* one) { return one->get_name() == name; });
}

// The C library otherwise keeps freed tensors for reuse, and cannot reuse an aligned block for the
// next one of the same size: packing a file would hold as much memory as the file.
void return_large_blocks() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

int run(int argc, char** argv) {
  CLI::App app("Makes neural networks sparse, and sparse networks fast.", "gossamer");
  app.set_version_flag("--version", GOSSAMER_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit status: 0 done, 1 the check failed, 2 bad usage or input.\n"
      "Files are safetensors; memory is that of the largest tensor, whatever the file's size.");
  Action action;
  add_inspect(app, action);
  add_prune(app, action);
  add_pack(app, action);
  add_unpack(app, action);
  add_verify(app, action);
  add_doctor(app, action);
  if (argc > 1 && argv[1][0] != '-' && !has_subcommand(app, argv[1])) {
    return fail(fmt::format(
        "'{}' is no subcommand; there are inspect, prune, pack, unpack, verify and doctor",
        io::escaped(argv[1])));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return report_usage(app, error);
  }
  const int status = action();
  flush_output();
  return status;
}

}  // namespace
}  // namespace gossamer::cli

int main(int argc, char** argv) {
  using namespace gossamer::cli;
  try {
    catch_signals();
    return_large_blocks();
    // A line reaches a pipe when it is printed, not when the run ends.
    std::setvbuf(stdout, nullptr, _IOLBF, std::size_t{1} << 16);
    return run(argc, argv);
  } catch (const Interrupted& interrupted) {
    fail("interrupted; nothing was written");
    return end_by(interrupted.signal);
  } catch (const std::bad_alloc&) {
    return fail("out of memory; the largest tensor must fit, with a copy of it");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
