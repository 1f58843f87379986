// SPDX-License-Identifier: BSD-3-Clause
// gossamer unpack: packed weights become ordinary tensors again.
#include <fmt/format.h>

#include <memory>

#include "cli/checkpoint.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

struct UnpackOptions {
  TargetOptions target;
  OutputOptions output;
};

// Writes one weight as the module stores it.
void write_dense(const std::string& name, const PackedView& packed,
                 std::span<const std::int64_t> shape, SafetensorsWriter& writer) {
  std::vector<std::byte> dense(
      static_cast<std::size_t>(element_count(shape) * dtype_bytes(packed.dtype())));
  MatrixView view = contiguous_view(static_cast<void*>(dense.data()), packed.dtype(), packed.out(),
                                    packed.in(), packed.batch());
  if (packed.transposed()) {
    view.row_stride = 1;
    view.col_stride = packed.out();
  }
  unpack(packed, view);
  writer.add(name, std::string(safetensors_word(packed.dtype())), {shape.begin(), shape.end()},
             channels_first(packed, std::move(dense)));
}

int run_unpack(const UnpackOptions& options) {
  const Checkpoint checkpoint(options.target.input);
  SafetensorsWriter writer(options.target.target(), header_capacity(checkpoint, false));
  copy_metadata(checkpoint.file(), writer);
  Progress progress("unpack", checkpoint.total_bytes(), options.output.lines());
  Json tensors = Json::array();
  for (const auto* entry : checkpoint.plain()) {
    check_interrupt();
    copy_tensor(checkpoint.file(), *entry, writer);
    progress.advance(entry->end - entry->begin);
  }
  for (const std::string& name : checkpoint.packed()) {
    check_interrupt();
    const PackedWeight packed = checkpoint.read(name);
    const auto shape = stored_shape(packed_info(checkpoint.file(), name));
    write_dense(name, packed, shape, writer);
    progress.wipe();
    if (options.output.lines()) {
      print_line(fmt::format("{}  {} {}: from {}", io::escaped(name), shape_text(shape),
                             safetensors_word(packed.view().dtype()),
                             layout_name(packed.view().layout())));
    }
    tensors.push_back({{"name", name}, {"shape", shape}});
    progress.advance(checkpoint.packed_bytes(name));
  }
  check_interrupt();
  writer.finish();
  progress.wipe();
  if (options.output.lines()) {
    print_line(fmt::format("{}: {} weights unpacked, {} tensors copied",
                           io::escaped(options.target.target_path()), checkpoint.packed().size(),
                           checkpoint.plain().size()));
  }
  if (options.output.json) {
    print_json({{"command", "unpack"},
                {"file", options.target.input},
                {"output", options.target.target_path()},
                {"unpacked", std::move(tensors)},
                {"copied", checkpoint.plain().size()}});
  }
  return kOk;
}

}  // namespace

void add_unpack(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand(
      "unpack", "Turn packed weights into ordinary tensors that load everywhere");
  auto options = std::make_shared<UnpackOptions>();
  options->target.add_to(*command);
  options->output.add_to(*command);
  command->footer(
      "Examples:\n"
      "  gossamer unpack model-packed.safetensors -o model-24.safetensors");
  command->callback([options, &action] { action = [options] { return run_unpack(*options); }; });
}

}  // namespace gossamer::cli
