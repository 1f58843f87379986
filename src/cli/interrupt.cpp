// SPDX-License-Identifier: BSD-3-Clause
#include "cli/interrupt.h"

#include <signal.h>

namespace gossamer::cli {
namespace {

volatile sig_atomic_t received = 0;

}  // namespace

void catch_signals() {
  struct sigaction action{};
  action.sa_handler = [](int signal) { received = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGXFSZ, SIG_IGN);
}

void check_interrupt() {
  if (received != 0) throw Interrupted{received};
}

}  // namespace gossamer::cli
