// SPDX-License-Identifier: BSD-3-Clause
// gossamer pack: weights with zeros become packed weights.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>

#include "cli/checkpoint.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/selection.h"
#include "core/taps.h"
#include "gossamer/error.h"
#include "gossamer/mask.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

struct PackCommand {
  TargetOptions target;
  SelectionOptions selection;
  OutputOptions output;
  std::string pattern;
};

std::int64_t file_bytes(const PackedView& packed) {
  std::int64_t bytes = 0;
  for (const PackedArray& array : format_arrays(packed)) {
    bytes += static_cast<std::int64_t>(array.bytes.size());
  }
  return bytes;
}

class Packer {
 public:
  explicit Packer(const PackCommand& options)
      : options_(options), checkpoint_(options.target.input) {
    if (!options.pattern.empty()) pattern_ = Pattern::parse(options.pattern);
    options.selection.check_globs(checkpoint_.file());
  }

  int run() {
    SafetensorsWriter writer(options_.target.target(), header_capacity(checkpoint_, true));
    copy_metadata(checkpoint_.file(), writer);
    Progress progress("pack", checkpoint_.total_bytes(), options_.output.lines());
    for (const auto* entry : checkpoint_.plain()) {
      check_interrupt();
      progress.wipe();
      std::string reason = options_.selection.why_not(*entry);
      if (reason.empty()) reason = pack_one(*entry, writer);
      if (!reason.empty()) leave(*entry, reason, writer);
      progress.advance(entry->end - entry->begin);
    }
    for (const std::string& name : checkpoint_.packed()) {
      check_interrupt();
      copy_packed(checkpoint_, name, writer);
      after_ += checkpoint_.packed_bytes(name);
      report_left(name, "packed already");
    }
    check_interrupt();
    writer.finish();
    progress.wipe();
    report_total();
    return kOk;
  }

 private:
  // Writes the weight packed, or says why it should stay dense.
  std::string pack_one(const SafetensorsEntry& entry, SafetensorsWriter& writer) {
    constexpr std::int64_t kLargestSide = std::numeric_limits<std::uint16_t>::max();
    const bool is_convolution = entry.shape.size() == 4;
    if (is_convolution && std::max(entry.shape[2], entry.shape[3]) > kLargestSide) {
      return fmt::format("its kernel is larger than {}", kLargestSide);
    }
    const bool transposed = !is_convolution && options_.selection.is_transposed(entry.name);
    const LoadedWeight weight(checkpoint_.file(), entry, transposed, nullptr);
    const auto dense_bytes = static_cast<std::int64_t>(weight.bytes().size());
    PackOptions how;
    how.transposed = transposed;
    how.name = entry.name;
    if (is_convolution) {
      how.kernel_h = entry.shape[2];
      how.kernel_w = entry.shape[3];
    }
    const std::int64_t taps = std::max<std::int64_t>(how.kernel_h * how.kernel_w, 1);
    const Pattern pattern =
        pattern_ ? detail::requested_packed_pattern(weight.view(), taps, *pattern_, entry.name)
                 : detail::infer_packed_pattern(weight.view(), taps);
    // A dense weight is told without packing it.
    if (!pattern_ && pattern.kind == Pattern::Kind::kUnstructured && !gains(weight)) {
      return "packed it would not be smaller";
    }
    const PackedWeight packed = pack(weight.view(), nullptr, pattern, format_for(pattern), how);
    const std::int64_t bytes = file_bytes(packed);
    if (!pattern_ && bytes >= dense_bytes) return "packed it would not be smaller";
    write_packed(writer, entry.name, packed);
    ++packed_;
    after_ += bytes;
    report_packed(entry, packed, bytes);
    return {};
  }

  static bool gains(const LoadedWeight& weight) {
    const auto& view = weight.view();
    const std::int64_t kept = count_nonzeros(view);
    const std::int64_t bytes =
        packed_size_bytes(Layout::kBitmask, Pattern::unstructured(0), view.dtype, view.batch,
                          view.rows, view.cols, kept);
    // The header and the gaps between arrays stay in memory; the real comparison follows.
    constexpr std::int64_t kInMemoryOnly = 1024;
    return bytes - kInMemoryOnly < static_cast<std::int64_t>(weight.bytes().size());
  }

  void leave(const SafetensorsEntry& entry, const std::string& reason, SafetensorsWriter& writer) {
    copy_tensor(checkpoint_.file(), entry, writer);
    after_ += entry.end - entry.begin;
    report_left(entry.name, reason);
  }

  void report_left(const std::string& name, const std::string& reason) {
    if (options_.output.lines()) print_line(fmt::format("{}  left: {}", io::escaped(name), reason));
    tensors_.push_back({{"name", name}, {"packed", false}, {"reason", reason}});
  }

  void report_packed(const SafetensorsEntry& entry, const PackedView& packed, std::int64_t bytes) {
    const std::int64_t dense = entry.end - entry.begin;
    const std::string pattern = packed.pattern().to_string();
    if (options_.output.lines()) {
      print_line(fmt::format("{}  {} {}: {} as {}, {} -> {} ({:.3f})", io::escaped(entry.name),
                             shape_text(entry.shape), entry.dtype, pattern,
                             layout_name(packed.layout()), bytes_text(dense), bytes_text(bytes),
                             static_cast<double>(bytes) / static_cast<double>(dense)));
    }
    tensors_.push_back({{"name", entry.name},
                        {"packed", true},
                        {"pattern", pattern},
                        {"format", layout_name(packed.layout())},
                        {"dense_bytes", dense},
                        {"bytes", bytes}});
  }

  void report_total() const {
    if (options_.output.lines()) {
      print_line(fmt::format("{}: {} of {} tensors packed; {} -> {}",
                             io::escaped(options_.target.target_path()), packed_, tensors_.size(),
                             bytes_text(checkpoint_.total_bytes()), bytes_text(after_)));
    }
    if (options_.output.json) {
      print_json({{"command", "pack"},
                  {"file", options_.target.input},
                  {"output", options_.target.target_path()},
                  {"tensors", tensors_},
                  {"packed", packed_},
                  {"bytes_before", checkpoint_.total_bytes()},
                  {"bytes", after_}});
    }
  }

  const PackCommand& options_;
  Checkpoint checkpoint_;
  std::optional<Pattern> pattern_;
  Json tensors_ = Json::array();
  std::int64_t packed_ = 0;
  std::int64_t after_ = 0;
};

}  // namespace

void add_pack(CLI::App& app, Action& action) {
  auto* command =
      app.add_subcommand("pack", "Store pruned weights without their zeros (docs/formats.md)");
  auto options = std::make_shared<PackCommand>();
  options->target.add_to(*command);
  command->add_option(
      "-p,--pattern", options->pattern,
      "The pattern that all selected weights must satisfy (default: the tightest one "
      "that each weight's zeros satisfy; weights that gain nothing stay dense). A convolution "
      "whose channels M does not divide is checked tap by tap and packed as unstructured");
  options->selection.add_to(*command);
  options->output.add_to(*command);
  command->footer(
      "Examples:\n"
      "  gossamer pack model-24.safetensors -o model-packed.safetensors\n"
      "  gossamer pack gpt2-24.safetensors --pattern 2:4 --transposed '*.c_*.weight' -o "
      "gpt2-packed.safetensors");
  command->callback([options, &action] { action = [options] { return Packer(*options).run(); }; });
}

}  // namespace gossamer::cli
