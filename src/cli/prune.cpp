// SPDX-License-Identifier: BSD-3-Clause
// gossamer prune: weights of a checkpoint become zeros, tensor by tensor: the smallest magnitudes,
// or what statistics of the layers' inputs say.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/calibrated.h"
#include "cli/checkpoint.h"
#include "cli/command.h"
#include "cli/global_threshold.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/prune_pattern.h"
#include "cli/selection.h"
#include "gossamer/error.h"
#include "gossamer/mask.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

struct PruneOptions {
  TargetOptions target;
  SelectionOptions selection;
  OutputOptions output;
  CalibratedOptions calibrated;
  std::string pattern;
  std::string scope;

  /// Where weights compete: as asked, else as the method's paper says.
  std::string scope_text() const {
    if (!scope.empty()) return scope;
    return calibrated.method == "wanda" || calibrated.method == "ria" ? "row" : "tensor";
  }
};

// Sets the elements to zero (+0, whatever the dtype) whose byte of the mask is 0.
void drop(std::vector<std::byte>& values, const std::vector<std::byte>& mask) {
  const std::size_t width = values.size() / mask.size();
  for (std::size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] == std::byte{0}) std::memset(values.data() + i * width, 0, width);
  }
}

class Pruner {
 public:
  explicit Pruner(const PruneOptions& options)
      : options_(options),
        pattern_(PrunePattern::parse(options.pattern)),
        scope_(parse_scope(options.scope_text())),
        checkpoint_(options.target.input) {
    options.calibrated.check();
    if (options.calibrated.asked()) statistics_.emplace(options.calibrated.statistics);
    if (statistics_ && scope_ == Scope::kGlobal) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("--method {} prunes weight by weight; --scope row or tensor",
                              options.calibrated.method));
    }
    options.selection.check_globs(checkpoint_.file());
    for (const auto* entry : checkpoint_.plain()) {
      if (why_not(*entry).empty()) {
        competitors_.push_back({entry, options.selection.is_transposed(entry->name)});
      }
    }
    if (competitors_.empty() && statistics_) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("'{}' has statistics of no weight of '{}' that is selected",
                              io::escaped(statistics_->path()), io::escaped(options.target.input)));
    }
    if (competitors_.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("no tensor of '{}' is a weight to prune; name some with --include",
                              io::escaped(options.target.input)));
    }
  }

  int run() {
    SafetensorsWriter writer(options_.target.target(), header_capacity(checkpoint_, false));
    if (scope_ == Scope::kGlobal && !pattern_.transposable) {
      selector_ = make_global_selector(checkpoint_.file(), competitors_, pattern_.pattern);
    }
    copy_metadata(checkpoint_.file(), writer);
    Progress progress("prune", checkpoint_.total_bytes(), options_.output.lines());
    for (const auto* entry : checkpoint_.plain()) {
      check_interrupt();
      progress.wipe();
      const std::string reason = why_not(*entry);
      if (reason.empty() && statistics_) {
        prune_by_statistics(*entry, writer);
      } else if (reason.empty()) {
        prune(*entry, writer);
      } else {
        copy_tensor(checkpoint_.file(), *entry, writer);
        report_left(entry->name, reason);
      }
      progress.advance(entry->end - entry->begin);
    }
    for (const std::string& name : checkpoint_.packed()) {
      check_interrupt();
      copy_packed(checkpoint_, name, writer);
      report_left(name, "packed already; unpack it first");
    }
    check_interrupt();
    writer.finish();
    progress.wipe();
    report_total();
    return kOk;
  }

 private:
  std::string why_not(const SafetensorsEntry& entry) const {
    std::string reason = options_.selection.why_not(entry);
    if (reason.empty() && statistics_ && !statistics_->has(entry.name)) {
      reason = "no statistics of its inputs";
    }
    return reason;
  }

  void prune_by_statistics(const SafetensorsEntry& entry, SafetensorsWriter& writer) {
    const LayerStatistics statistics = statistics_->read(entry.name);
    const bool transposed = statistics.transposed || options_.selection.is_transposed(entry.name);
    const LoadedWeight weight(checkpoint_.file(), entry, transposed, nullptr);
    PrunedWeight pruned =
        prune_calibrated(weight, entry.name, statistics, pattern_, scope_, options_.calibrated);
    if (pruned.values.empty()) {
      pruned.values.assign(weight.bytes().begin(), weight.bytes().end());
    }
    refuse_nothing_kept(entry, pruned.mask);
    drop(pruned.values, pruned.mask);
    write(entry, weight, pruned.values, writer, pruned.error, pruned.remark);
    if (pruned.damping > options_.calibrated.damping && options_.output.lines()) {
      print_line(fmt::format("{}  damping raised from {} to {}", io::escaped(entry.name),
                             options_.calibrated.damping, pruned.damping));
    }
  }

  void prune(const SafetensorsEntry& entry, SafetensorsWriter& writer) {
    const LoadedWeight weight(checkpoint_.file(), entry,
                              options_.selection.is_transposed(entry.name), &pattern_.pattern);
    std::vector<std::byte> mask(static_cast<std::size_t>(weight.elements()));
    const MatrixView kept = weight.view_of(mask.data(), DType::kBool);
    if (selector_ != nullptr) {
      selector_->next_mask(weight.view(), kept);
    } else {
      const Scope scope = scope_ == Scope::kGlobal ? Scope::kTensor : scope_;
      select_by_magnitude(weight.view(), scope, kept, entry.name);
    }
    refuse_nothing_kept(entry, mask);
    std::vector<std::byte> values(weight.bytes().begin(), weight.bytes().end());
    drop(values, weight.in_file_order(std::move(mask)));
    write(entry, weight, values, writer, std::nullopt);
  }

  /// A pattern too coarse for a weight would switch the layer off. With scope global a layer may
  /// well lose all of its weights to others.
  void refuse_nothing_kept(const SafetensorsEntry& entry, std::span<const std::byte> mask) const {
    const bool kept =
        std::any_of(mask.begin(), mask.end(), [](std::byte b) { return b != std::byte{0}; });
    if (kept || mask.empty() || pattern_.pattern.sparsity >= 1 || scope_ == Scope::kGlobal) return;
    const std::string name = io::escaped(entry.name);
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("weight '{}': pattern {} keeps nothing of {}; choose smaller blocks or a "
                    "lower sparsity, or leave it out: --exclude '{}'",
                    name, pattern_.to_string(), shape_text(entry.shape), name));
  }

  void write(const SafetensorsEntry& entry, const LoadedWeight& weight,
             std::vector<std::byte>& values, SafetensorsWriter& writer, std::optional<double> error,
             const std::string& remark = {}) {
    writer.add(entry.name, entry.dtype, entry.shape, values);
    const auto flat = contiguous_view(values.data(), weight.view().dtype, 1, weight.elements());
    const std::int64_t zeros = weight.elements() - count_nonzeros(read_only(flat));
    zeros_ += zeros;
    elements_ += weight.elements();
    if (options_.output.lines()) {
      print_line(fmt::format(
          "{}  {} {}: {} zero{}{}", io::escaped(entry.name), shape_text(entry.shape), entry.dtype,
          percent_text(zeros, weight.elements()),
          error ? fmt::format(", error {:.4f}", *error) : "", remark.empty() ? "" : "; " + remark));
    }
    Json json{
        {"name", entry.name}, {"pruned", true}, {"elements", weight.elements()}, {"zeros", zeros}};
    if (error) json["error"] = *error;
    if (!remark.empty()) json["remark"] = remark;
    tensors_.push_back(std::move(json));
  }

  void select_by_magnitude(const ConstMatrixView& values, Scope scope, const MatrixView& kept,
                           const std::string& name) const {
    try {
      pattern_.select_by_magnitude(values, scope, kept);
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("weight '{}': {}", io::escaped(name), error.what()));
    }
  }

  void report_left(const std::string& name, const std::string& reason) {
    if (options_.output.lines()) print_line(fmt::format("{}  left: {}", io::escaped(name), reason));
    tensors_.push_back({{"name", name}, {"pruned", false}, {"reason", reason}});
  }

  void report_total() const {
    if (options_.output.lines()) {
      print_line(fmt::format("{}: {} of {} tensors pruned to {}, {} of their weights zero",
                             io::escaped(options_.target.target_path()), competitors_.size(),
                             tensors_.size(), pattern_.to_string(),
                             percent_text(zeros_, elements_)));
    }
    if (options_.output.json) {
      print_json({{"command", "prune"},
                  {"file", options_.target.input},
                  {"output", options_.target.target_path()},
                  {"pattern", pattern_.to_string()},
                  {"method", options_.calibrated.method},
                  {"scope", options_.scope_text()},
                  {"tensors", tensors_},
                  {"pruned", competitors_.size()},
                  {"elements", elements_},
                  {"zeros", zeros_}});
    }
  }

  const PruneOptions& options_;
  PrunePattern pattern_;
  Scope scope_;
  Checkpoint checkpoint_;
  std::vector<Competitor> competitors_;
  std::unique_ptr<GlobalSelector> selector_;
  std::optional<Statistics> statistics_;
  Json tensors_ = Json::array();
  std::int64_t zeros_ = 0;
  std::int64_t elements_ = 0;
};

}  // namespace

void add_prune(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand(
      "prune", "Set weights to zero: the smallest ones, or by statistics of the inputs");
  auto options = std::make_shared<PruneOptions>();
  options->target.add_to(*command);
  command
      ->add_option(
          "-p,--pattern", options->pattern,
          "unstructured:S, N:M, transposable:N:M, block:RxC:S, vnm:V:N:M or fanin:S; S is the "
          "fraction of zeros")
      ->required();
  command->add_option(
      "--scope", options->scope,
      "Where weights compete: row, tensor or global (default: row for wanda and ria, "
      "else tensor)");
  options->calibrated.add_to(*command);
  options->selection.add_to(*command);
  options->output.add_to(*command);
  command->footer(
      "Everything that is not a selected weight is copied unchanged. A convolution [OC, IC, KH, "
      "KW] is\n"
      "the matrix [OC, KH*KW*IC], channels last; the groups of N:M and vnm never cross taps.\n\n"
      "Examples:\n"
      "  gossamer prune model.safetensors -p 2:4 -o model-24.safetensors\n"
      "  gossamer prune model.safetensors -p 2:4 --method sparsegpt --stats stats.safetensors "
      "\\\n    -o model-24.safetensors\n"
      "  gossamer prune model.safetensors -p unstructured:0.9 --scope global --exclude '*.head.*' "
      "\\\n"
      "    -o model-90.safetensors");
  command->callback([options, &action] { action = [options] { return Pruner(*options).run(); }; });
}

}  // namespace gossamer::cli
