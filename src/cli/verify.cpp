// SPDX-License-Identifier: BSD-3-Clause
// gossamer verify: do the weights of a file satisfy a pattern, and are its packed weights sound?
#include <fmt/format.h>

#include <memory>
#include <optional>

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

struct VerifyOptions {
  std::string input;
  std::string pattern;
  std::string scope = "tensor";
  SelectionOptions selection;
  OutputOptions output;
};

class Verifier {
 public:
  explicit Verifier(const VerifyOptions& options) : options_(options), checkpoint_(options.input) {
    if (!options.pattern.empty()) pattern_ = Pattern::parse(options.pattern);
    together_ = parse_scope(options.scope) == Scope::kGlobal;
    if (together_ && (!pattern_ || pattern_->kind != Pattern::Kind::kUnstructured)) {
      throw Error(
          ErrorCode::kInvalidArgument,
          "--scope global counts zeros over all weights and takes --pattern unstructured:S; "
          "leave --scope out for other patterns");
    }
    options.selection.check_globs(checkpoint_.file());
  }

  int run() {
    Progress progress("verify", checkpoint_.total_bytes(), options_.output.lines());
    if (pattern_) {
      for (const auto* entry : checkpoint_.plain()) {
        check_interrupt();
        progress.wipe();
        if (options_.selection.why_not(*entry).empty()) check_plain(*entry);
        progress.advance(entry->end - entry->begin);
      }
    }
    for (const std::string& name : checkpoint_.packed()) {
      check_interrupt();
      progress.wipe();
      check_packed(name);
      progress.advance(checkpoint_.packed_bytes(name));
    }
    progress.wipe();
    if (tensors_.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  pattern_
                      ? "no tensor of the file is a weight to check; name some with --include"
                      : "the file has no packed weights; say which --pattern its weights should "
                        "satisfy");
    }
    if (together_) check_together();
    return report();
  }

 private:
  void check_plain(const SafetensorsEntry& entry) {
    const LoadedWeight weight(checkpoint_.file(), entry,
                              options_.selection.is_transposed(entry.name), &*pattern_);
    add(entry.name, weight.view(), *pattern_);
  }

  // Unsound arrays are a violation with their place, not the end of the run.
  void check_packed(const std::string& name) {
    std::optional<PackedWeight> packed;
    try {
      packed = checkpoint_.read(name);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kMalformedData) throw;
      return add_result(name, packed_info(checkpoint_.file(), name).pattern, error.what(), {});
    }
    const PackedView view = packed->view();
    std::vector<std::byte> dense(static_cast<std::size_t>(view.batch() * view.out() * view.in() *
                                                          dtype_bytes(view.dtype())));
    const auto values = contiguous_view(static_cast<void*>(dense.data()), view.dtype(), view.out(),
                                        view.in(), view.batch());
    unpack(view, values);
    const Pattern pattern = pattern_ ? *pattern_ : view.pattern();
    const bool in_taps = view.taps() > 1 && detail::groups_inputs(pattern);
    add(name, in_taps ? detail::by_tap(values, view.taps()) : values, pattern);
  }

  void add(const std::string& name, const ConstMatrixView& values, const Pattern& pattern) {
    if (together_) {
      const std::int64_t elements = values.batch * values.rows * values.cols;
      elements_ += elements;
      zeros_ += elements - count_nonzeros(values);
      return add_result(name, pattern, "", {});
    }
    const auto violation = find_violation(values, pattern);
    add_result(name, pattern, violation ? violation->message : "", violation);
  }

  void add_result(const std::string& name, const Pattern& pattern, const std::string& message,
                  const std::optional<Violation>& place) {
    Json result{{"name", name}, {"pattern", pattern.to_string()}, {"ok", message.empty()}};
    if (!message.empty()) {
      ++failed_;
      result["message"] = message;
      if (place) {
        result["place"] = {{"batch", place->batch},
                           {"row", place->row},
                           {"col_begin", place->col_begin},
                           {"col_end", place->col_end}};
      }
    }
    tensors_.push_back(std::move(result));
    if (!options_.output.lines() || together_) return;
    print_line(message.empty() ? fmt::format("{}  ok: {}", io::escaped(name), pattern.to_string())
                               : fmt::format("{}  FAILED: {}", io::escaped(name), message));
  }

  void check_together() {
    const std::int64_t wanted = dropped_count(pattern_->sparsity, elements_);
    if (zeros_ >= wanted) return;
    ++failed_;
    if (options_.output.lines()) {
      print_line(fmt::format("FAILED: {} of {} weights are zero, {} asks for {}", zeros_, elements_,
                             pattern_->to_string(), wanted));
    }
  }

  int report() const {
    if (options_.output.lines()) {
      print_line(
          failed_ == 0
              ? fmt::format("{}: all {} weights ok", io::escaped(options_.input), tensors_.size())
              : fmt::format("{}: {} of {} weights FAILED; prune them first (gossamer prune)",
                            io::escaped(options_.input), failed_, tensors_.size()));
    }
    if (options_.output.json) {
      Json document{{"command", "verify"},     {"file", options_.input}, {"pattern", nullptr},
                    {"scope", options_.scope}, {"ok", failed_ == 0},     {"tensors", tensors_}};
      if (pattern_) document["pattern"] = pattern_->to_string();
      if (together_) document["total"] = {{"elements", elements_}, {"zeros", zeros_}};
      print_json(document);
    }
    return failed_ == 0 ? kOk : kCheckFailed;
  }

  const VerifyOptions& options_;
  Checkpoint checkpoint_;
  std::optional<Pattern> pattern_;
  bool together_ = false;
  Json tensors_ = Json::array();
  std::int64_t failed_ = 0;
  std::int64_t elements_ = 0;
  std::int64_t zeros_ = 0;
};

}  // namespace

void add_verify(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand(
      "verify", "Check that weights satisfy a pattern and that packed weights are sound");
  auto options = std::make_shared<VerifyOptions>();
  command->add_option("FILE", options->input, "A safetensors file")->required();
  command->add_option("-p,--pattern", options->pattern,
                      "The pattern; without it packed weights are checked against their own");
  command
      ->add_option("--scope", options->scope,
                   "global: count the zeros of unstructured:S over all weights together")
      ->capture_default_str();
  options->selection.add_to(*command);
  options->output.add_to(*command);
  command->footer(
      "Exit status 1 where a weight fails; the first violation of each weight is printed.\n\n"
      "Examples:\n"
      "  gossamer verify model-24.safetensors --pattern 2:4\n"
      "  gossamer verify model-packed.safetensors");
  command->callback(
      [options, &action] { action = [options] { return Verifier(*options).run(); }; });
}

}  // namespace gossamer::cli
