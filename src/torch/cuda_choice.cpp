// SPDX-License-Identifier: BSD-3-Clause
#include "torch/cuda_choice.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "gossamer/error.h"

namespace gossamer::door {

using cuda::LinearSp24Args;
using cuda::LinearSp24Kernel;

namespace {

/// A variable of the environment; null where it is unset or empty.
const char* variable(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? text : nullptr;
}

/// GOSSAMER_CUT, for tests of a forced row: "2x4" lets two blocks share X and four divide the
/// inputs.
cuda::Sp24Cut forced_cut() {
  cuda::Sp24Cut cut;
  if (const char* text = variable("GOSSAMER_CUT")) {
    int end = 0;
    if (std::sscanf(text, "%dx%d%n", &cut.shared_by, &cut.split, &end) != 2 || text[end] != '\0' ||
        cut.shared_by < 1 || cut.split < 1) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("GOSSAMER_CUT={}: expected two numbers as in 2x4", text));
    }
  }
  return cut;
}

}  // namespace

bool is_row_forced() {
  const char* const forced = variable("GOSSAMER_KERNEL");
  return forced != nullptr && cuda::find_linear_sp24(forced) != nullptr;
}

const LinearSp24Kernel& choose_row(LinearSp24Args& args, const cuda::DeviceInfo& device) {
  const char* const forced = variable("GOSSAMER_KERNEL");
  if (forced != nullptr) {
    if (const LinearSp24Kernel* row = cuda::find_linear_sp24(forced)) {
      const std::string why = row->dtype == args.dtype
                                  ? row->refuses(*row, args, device)
                                  : "computes " + std::string(dtype_name(row->dtype));
      if (why.empty()) {
        args.cut = forced_cut();
        return *row;
      }
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("GOSSAMER_KERNEL={}: the kernel {}", forced, why));
    }
  }
  if (const char* cut = variable("GOSSAMER_CUT")) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format(
            "GOSSAMER_CUT={}: cuts the kernel that GOSSAMER_KERNEL names, and {}; set "
            "it to a row of the GPU's kernel table, or unset GOSSAMER_CUT",
            cut,
            forced == nullptr ? "that is unset" : fmt::format("'{}' is none of a GPU's", forced)));
  }
  const LinearSp24Kernel* const row = cuda::choose_linear_sp24(args, device);
  if (row != nullptr) return *row;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("no kernel multiplies 2:4 weights on {} (compute capability {}.{}); "
                  "kernels of {} need {}: unpack the model with gossamer.desparsify_(model)",
                  device.name, device.compute_major, device.compute_minor, dtype_name(args.dtype),
                  args.dtype == DType::kFloat8E4M3 ? "9.x" : "8.x, 9.x or 12.x"));
}

}  // namespace gossamer::door
