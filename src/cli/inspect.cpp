// SPDX-License-Identifier: BSD-3-Clause
// gossamer inspect: what is in a file.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <set>

#include "cli/checkpoint.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/selection.h"
#include "cli/sensitivity.h"
#include "gossamer/error.h"
#include "gossamer/mask.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

constexpr std::size_t kWidestName = 60;

struct InspectOptions {
  std::string input;
  std::vector<std::string> transposed;
  bool sensitivity = false;
  std::string statistics;
  OutputOptions output;
};

struct Row {
  std::string name = {};
  std::string dtype = {};
  std::vector<std::int64_t> shape = {};
  std::int64_t bytes = 0;
  std::optional<std::int64_t> zeros = {};  // of types that weights have
  std::int64_t elements = 0;
  std::string pattern = {};
  std::string format = {};  // of a packed weight
};

Pattern infer(const SafetensorsFile& file, const SafetensorsEntry& entry, bool transposed,
              std::int64_t zeros) {
  const Pattern found = infer_pattern(LoadedWeight(file, entry, transposed, nullptr).view());
  if (entry.shape.size() == 2) return found;
  // Groups of inputs lie in one tap; what looks like groups across taps is unstructured.
  const Pattern any_groups = Pattern::nm(1, 4);
  const Pattern in_taps = infer_pattern(LoadedWeight(file, entry, transposed, &any_groups).view());
  if (in_taps.kind == Pattern::Kind::kNm) return in_taps;
  if (found.kind != Pattern::Kind::kNm) return found;
  return Pattern::unstructured(static_cast<double>(zeros) /
                               static_cast<double>(element_count(entry.shape)));
}

Row plain_row(const SafetensorsFile& file, const SafetensorsEntry& entry, bool transposed) {
  Row row{.name = entry.name, .dtype = entry.dtype, .shape = entry.shape};
  row.bytes = entry.end - entry.begin;
  row.elements = element_count(entry.shape);
  const auto dtype = dtype_of_word(entry.dtype);
  if (!dtype || !is_weight_dtype(*dtype) || row.elements == 0) return row;
  const auto flat = contiguous_view(file.bytes(entry).data(), *dtype, 1, row.elements);
  row.zeros = row.elements - count_nonzeros(flat);
  if (*row.zeros > 0 && (entry.shape.size() == 2 || entry.shape.size() == 4)) {
    row.pattern = infer(file, entry, transposed, *row.zeros).to_string();
  }
  file.release(entry);
  return row;
}

Row packed_row(const Checkpoint& checkpoint, const std::string& name) {
  const FormatInfo info = packed_info(checkpoint.file(), name);
  Row row{.name = name, .dtype = std::string(safetensors_word(info.dtype))};
  row.shape = stored_shape(info);
  row.bytes = checkpoint.packed_bytes(name);
  row.elements = element_count(row.shape);
  row.pattern = info.pattern.to_string();
  row.format = layout_name(info.format);
  const PackedWeight packed = checkpoint.read(name);
  std::vector<std::byte> dense(static_cast<std::size_t>(row.elements * dtype_bytes(info.dtype)));
  const auto view = contiguous_view(dense.data(), info.dtype, info.out, info.in, info.batch);
  unpack(packed, view);
  row.zeros = row.elements - count_nonzeros(read_only(view));
  return row;
}

Json json_of(const Row& row) {
  Json json{{"name", row.name},   {"dtype", row.dtype},       {"shape", row.shape},
            {"bytes", row.bytes}, {"elements", row.elements}, {"zeros", nullptr},
            {"pattern", nullptr}, {"packed", nullptr}};
  if (row.zeros) json["zeros"] = *row.zeros;
  if (!row.pattern.empty()) json["pattern"] = row.pattern;
  if (!row.format.empty()) json["packed"] = row.format;
  return json;
}

std::string line_of(const Row& row, std::size_t name_width) {
  const std::string pattern = row.pattern.empty() ? "-" : row.pattern;
  return fmt::format(
      "{}  {}  {}  {:>9}  {:>10}  {}", padded(io::escaped(row.name), name_width),
      padded(row.dtype, 7), padded(shape_text(row.shape), 20),
      row.zeros ? percent_text(*row.zeros, row.elements) : "-", bytes_text(row.bytes),
      row.format.empty() ? pattern : padded(pattern, 20) + "  packed: " + row.format);
}

std::size_t name_width(const Checkpoint& checkpoint) {
  std::size_t width = 4;
  for (const auto* entry : checkpoint.plain())
    width = std::max(width, io::escaped(entry->name).size());
  for (const auto& name : checkpoint.packed()) width = std::max(width, io::escaped(name).size());
  return std::min(width, kWidestName);
}

void print_errors_head(std::size_t width) {
  std::string line =
      fmt::format("{}  {}  {}", padded("name", width), padded("by", 9), padded("error of", 8));
  for (const char* pattern : kTriedPatterns) line += fmt::format("  {:>16}", pattern);
  print_line(line);
}

// What the numbers are of, which lie in one column and may not be compared.
void print_errors_foot(const std::set<std::string_view>& over) {
  if (over.contains("weight")) print_line("weight: |W - W'|^2 / |W|^2, no statistics of inputs");
  if (over.contains("gram")) print_line("gram: |(W - W')X|^2 / |WX|^2, the layer's outputs");
  if (over.contains("norms")) {
    print_line(
        "norms: as gram, but as if inputs were uncorrelated; save_statistics with "
        "kind=\"gram\" says how they are");
  }
}

// What each selected weight would lose: a table of its own.
int inspect_sensitivity(const InspectOptions& options) {
  const Checkpoint checkpoint(options.input);
  SelectionOptions names;
  names.transposed = options.transposed;
  names.check_globs(checkpoint.file());
  std::optional<Statistics> statistics;
  if (!options.statistics.empty()) statistics.emplace(options.statistics);
  Progress progress("inspect", checkpoint.total_bytes(), options.output.lines());
  const std::size_t width = name_width(checkpoint);
  if (options.output.lines()) print_errors_head(width);
  Json tensors = Json::array();
  std::set<std::string_view> over;
  for (const auto* entry : checkpoint.plain()) {
    check_interrupt();
    if (names.why_not(*entry).empty()) {
      const Tried tried =
          sensitivity(checkpoint.file(), *entry, names.is_transposed(entry->name), statistics);
      Json json{{"name", entry->name},
                {"by", tried.by},
                {"over", tried.over},
                {"errors", Json::object()}};
      std::string line = fmt::format("{}  {}  {}", padded(io::escaped(entry->name), width),
                                     padded(tried.by, 9), padded(tried.over, 8));
      for (std::size_t i = 0; i < tried.errors.size(); ++i) {
        json["errors"][kTriedPatterns[i]] = tried.errors[i];
        line += fmt::format("  {:>16.4f}", tried.errors[i]);
      }
      over.insert(tried.over);
      progress.wipe();
      if (options.output.lines()) print_line(line);
      tensors.push_back(std::move(json));
    }
    progress.advance(entry->end - entry->begin);
  }
  progress.wipe();
  if (options.output.lines()) print_errors_foot(over);
  if (options.output.json) {
    print_json({{"command", "inspect"}, {"file", options.input}, {"sensitivity", tensors}});
  }
  return kOk;
}

int inspect(const InspectOptions& options) {
  if (options.sensitivity) return inspect_sensitivity(options);
  if (!options.statistics.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "--stats goes with --sensitivity");
  }
  const Checkpoint checkpoint(options.input);
  SelectionOptions names;
  names.transposed = options.transposed;
  names.check_globs(checkpoint.file());
  Progress progress("inspect", checkpoint.total_bytes(), options.output.lines());
  const std::size_t width = name_width(checkpoint);
  Row total{.zeros = 0};
  Json tensors = Json::array();
  const auto add = [&](const Row& row) {
    check_interrupt();
    total.bytes += row.bytes;
    if (row.zeros) {
      total.elements += row.elements;
      *total.zeros += *row.zeros;
    }
    progress.wipe();
    if (options.output.lines()) print_line(line_of(row, width));
    if (options.output.json) tensors.push_back(json_of(row));
    progress.advance(row.bytes);
  };
  if (options.output.lines()) {
    print_line(fmt::format("{}  {}  {}  {:>9}  {:>10}  {}", padded("name", width),
                           padded("dtype", 7), padded("shape", 20), "zeros", "bytes", "pattern"));
  }
  for (const auto* entry : checkpoint.plain()) {
    add(plain_row(checkpoint.file(), *entry, names.is_transposed(entry->name)));
  }
  for (const auto& name : checkpoint.packed()) add(packed_row(checkpoint, name));
  const std::size_t all = checkpoint.plain().size() + checkpoint.packed().size();
  if (options.output.lines()) {
    print_line(fmt::format("{} tensors, {} of them packed; {} weights and parameters, {} zero; {}",
                           all, checkpoint.packed().size(), total.elements,
                           percent_text(*total.zeros, total.elements), bytes_text(total.bytes)));
  }
  if (options.output.json) {
    print_json({{"command", "inspect"},
                {"file", options.input},
                {"metadata", checkpoint.file().metadata()},
                {"tensors", std::move(tensors)},
                {"total",
                 {{"tensors", all},
                  {"packed", checkpoint.packed().size()},
                  {"elements", total.elements},
                  {"zeros", *total.zeros},
                  {"bytes", total.bytes}}}});
  }
  return kOk;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand(
      "inspect", "Per tensor: shape, dtype, zeros, the tightest pattern that the zeros satisfy");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("FILE", options->input, "A safetensors file")->required();
  command
      ->add_option("--transposed", options->transposed,
                   "Tensors whose name matches GLOB are stored [in, out] (repeatable)")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  command->add_flag("--sensitivity", options->sensitivity,
                    "Instead: the relative error of each weight at 2:4 and at 50 to 90 % zeros");
  command
      ->add_option("--stats", options->statistics,
                   "With --sensitivity: statistics of the layers' inputs; errors are those of the "
                   "layers' outputs then, exactly where the statistics have Gram matrices")
      ->type_name("FILE");
  options->output.add_to(*command);
  command->footer(
      "Examples:\n"
      "  gossamer inspect model.safetensors\n"
      "  gossamer inspect model.safetensors --sensitivity --stats stats.safetensors\n"
      "  gossamer inspect model.safetensors --json | jq '.tensors[] | select(.pattern)'");
  command->callback([options, &action] { action = [options] { return inspect(*options); }; });
}

}  // namespace gossamer::cli
