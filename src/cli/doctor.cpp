// SPDX-License-Identifier: BSD-3-Clause
// gossamer doctor: what this machine has, which kernels it runs and why not the others.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"
#include "cli/output.h"
#include "gossamer/conv.h"
#include "gossamer/linear.h"
#include "gossamer/machine.h"
#include "gossamer/packed_io.h"
#include "plan/cache.h"

namespace gossamer::cli {
namespace {

std::string joined(std::uint32_t isa) {
  const auto names = isa_names(isa);
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

/// What is shown of a row of either table.
struct Row {
  std::string_view name;
  std::string_view operation;
  std::uint32_t needs;
  Layout layout;
  DType weight_dtype;
  DType activation_dtype;
};

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  for (const LinearKernel& k : linear_kernels()) {
    rows.push_back({k.name, "linear", k.needs, k.layout, k.weight_dtype, k.activation_dtype});
  }
  for (const Conv2dKernel& k : conv2d_kernels()) {
    rows.push_back({k.name, "conv2d", k.needs, k.layout, k.dtype, k.dtype});
  }
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.name < b.name; });
  return rows;
}

// Why a row cannot run here; empty where it can.
std::string why_not(const Row& kernel, const Machine& machine) {
  const std::uint32_t missing = kernel.needs & ~machine.isa;
  if (missing == 0) return {};
  if ((missing & ~machine.isa_detected) == 0) {
    return fmt::format("GOSSAMER_MAX_ISA hides {}", joined(missing));
  }
  return fmt::format("the processor has no {}", joined(missing & ~machine.isa_detected));
}

std::string cache_text() {
  const auto file = plan::cache_file("");
  return file.empty() ? "off" : file.string();
}

Json json_of(const Machine& machine) {
  Json kernels = Json::array();
  for (const Row& kernel : all_rows()) {
    const std::string reason = why_not(kernel, machine);
    Json row{{"name", kernel.name},
             {"operation", kernel.operation},
             {"layout", layout_name(kernel.layout)},
             {"weight_dtype", dtype_name(kernel.weight_dtype)},
             {"activation_dtype", dtype_name(kernel.activation_dtype)},
             {"needs", isa_names(kernel.needs)},
             {"runs", reason.empty()}};
    if (!reason.empty()) row["reason"] = reason;
    kernels.push_back(std::move(row));
  }
  return {{"command", "doctor"},
          {"version", GOSSAMER_VERSION},
          {"compiler", __VERSION__},
          {"file_version", kFileVersion},
          {"packed_version", PackedHeader::kVersion},
          {"machine",
           {{"name", machine.name},
            {"processor", machine.processor},
            {"cores", machine.cores},
            {"instruction_sets", isa_names(machine.isa)},
            {"instruction_sets_detected", isa_names(machine.isa_detected)},
            {"l1d_bytes", machine.l1d_bytes},
            {"l2_bytes", machine.l2_bytes},
            {"l3_bytes", machine.l3_bytes}}},
          {"plan_cache", cache_text()},
          {"kernels", std::move(kernels)}};
}

void print_text(const Machine& machine) {
  print_line(fmt::format("gossamer {}  (compiler {}, packed version {})", GOSSAMER_VERSION,
                         __VERSION__, PackedHeader::kVersion));
  print_line(fmt::format("machine           {}: {}, {} cores", machine.name, machine.processor,
                         machine.cores));
  print_line(fmt::format("caches            L1d {}, L2 {}, L3 {}", bytes_text(machine.l1d_bytes),
                         bytes_text(machine.l2_bytes), bytes_text(machine.l3_bytes)));
  print_line(fmt::format("instruction sets  {}", joined(machine.isa)));
  if (machine.isa != machine.isa_detected) {
    print_line(fmt::format("hidden            {} (GOSSAMER_MAX_ISA)",
                           joined(machine.isa_detected & ~machine.isa)));
  }
  print_line(fmt::format("plan cache        {}", cache_text()));
  const std::vector<Row> rows = all_rows();
  std::size_t width = 0;
  std::size_t layout_width = 0;
  std::size_t runnable = 0;
  for (const Row& kernel : rows) {
    width = std::max(width, kernel.name.size());
    layout_width = std::max(layout_width, std::string_view(layout_name(kernel.layout)).size());
    runnable += why_not(kernel, machine).empty() ? 1u : 0u;
  }
  print_line(fmt::format("kernels           {} of {} run here", runnable, rows.size()));
  for (const Row& kernel : rows) {
    const std::string reason = why_not(kernel, machine);
    std::string line = fmt::format("  {}  {:<{}}  {:<{}}  ", reason.empty() ? "yes" : "no ",
                                   kernel.name, width, layout_name(kernel.layout), layout_width);
    line += reason.empty() ? std::string(dtype_name(kernel.weight_dtype))
                           : fmt::format("{:<8}  {}", dtype_name(kernel.weight_dtype), reason);
    print_line(line);
  }
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand(
      "doctor", "What this machine has, which kernels it can run and why not the others");
  auto output = std::make_shared<OutputOptions>();
  output->add_to(*command);
  command->footer(
      "Examples:\n"
      "  gossamer doctor\n"
      "  GOSSAMER_MAX_ISA=avx2 gossamer doctor --json");
  command->callback([output, &action] {
    action = [output] {
      const Machine& machine = host_machine();
      if (output->json) print_json(json_of(machine));
      if (output->lines()) print_text(machine);
      return kOk;
    };
  });
}

}  // namespace gossamer::cli
