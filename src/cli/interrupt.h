// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace gossamer::cli {

/// Thrown between two tensors after SIGINT or SIGTERM, so that destructors remove what was half
/// written.
struct Interrupted {
  int signal;
};

/// Makes SIGINT and SIGTERM polite the first time (the second ends the process at once), and a
/// file-size limit an error of the write instead of the end of the process.
void catch_signals();

/// Throws Interrupted where a signal has come.
void check_interrupt();

}  // namespace gossamer::cli
