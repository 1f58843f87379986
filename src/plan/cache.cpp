// SPDX-License-Identifier: BSD-3-Clause
#include "plan/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "plan/kernel_table.h"

namespace gossamer::plan {
namespace {

std::string_view memory_word(MemoryMode memory) {
  switch (memory) {
    case MemoryMode::kSpeed:
      return "speed";
    case MemoryMode::kLow:
      return "low";
    case MemoryMode::kDefault:
      break;
  }
  return "default";
}

using Json = nlohmann::json;

constexpr int kCacheVersion = 5;
constexpr const char* kFileName = "plans-v1.json";
constexpr std::size_t kMaxPlans = 4096;
constexpr std::uintmax_t kMaxFileBytes = std::uintmax_t{64} << 20;

std::string environment(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr ? text : "";
}

// The kind of pattern without its sparsity: the key holds the density that was really reached.
std::string pattern_kind(Pattern pattern) {
  const bool follows_from_numbers =
      pattern.kind == Pattern::Kind::kNm || pattern.kind == Pattern::Kind::kVnm;
  if (!follows_from_numbers) pattern.sparsity = 0.0;
  return pattern.to_string();
}

/// Held by one writer of a folder at a time, so that none overwrites what another has just added.
/// Where the file system knows no locks the writers go on without.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder)
      : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (descriptor_ >= 0) static_cast<void>(::flock(descriptor_, LOCK_EX));
  }
  ~FolderLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_;
};

Json to_json(const Plan& plan) {
  Json choices = Json::array();
  for (const PlanChoice& c : plan.choices) {
    choices.push_back({{"kernel", c.kernel},
                       {"tokens", c.tokens},
                       {"milliseconds", c.milliseconds},
                       {"dense_milliseconds", c.dense_milliseconds},
                       {"reason", c.reason}});
  }
  Json json = {{"sparse", plan.sparse},
               {"layout", layout_name(plan.layout)},
               {"reason", plan.reason},
               {"choices", std::move(choices)}};
  if (plan.second) json["second"] = layout_name(*plan.second);
  return json;
}

// Throws a JSON exception where a field is missing or of another type.
std::optional<Plan> from_json(const Json& json) {
  Plan plan;
  plan.from_cache = true;
  plan.sparse = json.at("sparse").get<bool>();
  plan.reason = json.at("reason").get<std::string>();
  const std::optional<Layout> layout = parse_layout(json.at("layout").get<std::string>());
  const Json& choices = json.at("choices");
  if (!layout || choices.size() != plan.choices.size()) return std::nullopt;
  plan.layout = *layout;
  if (const auto second = json.find("second"); second != json.end()) {
    plan.second = parse_layout(second->get<std::string>());
    if (!plan.second || plan.second == layout) return std::nullopt;
  }
  for (std::size_t i = 0; i < plan.choices.size(); ++i) {
    const Json& c = choices.at(i);
    plan.choices[i] = {.kernel = c.at("kernel").get<std::string>(),
                       .tokens = c.at("tokens").get<std::int64_t>(),
                       .milliseconds = c.at("milliseconds").get<double>(),
                       .dense_milliseconds = c.at("dense_milliseconds").get<double>(),
                       .reason = c.at("reason").get<std::string>()};
  }
  return plan;
}

bool runs_here(const Plan& plan, const LinearDesc& desc, const Machine& machine) {
  bool any_sparse = false;
  for (const PlanChoice& choice : plan.choices) {
    if (choice.kernel == kDenseKernel) continue;
    const LinearKernel* row = find_linear_kernel(choice.kernel);
    if (row == nullptr || !plan::holds(plan, row->layout)) return false;
    if (!why_not(*row, desc, machine).empty()) return false;
    any_sparse = true;
  }
  return any_sparse == plan.sparse;
}

/// The file's contents; an empty cache where there is no file or no sense in it.
Json load(const std::filesystem::path& file) {
  Json empty = {{"version", kCacheVersion}, {"plans", Json::object()}};
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(file, error);
  if (error || bytes > kMaxFileBytes) return empty;
  std::ifstream stream(file, std::ios::binary);
  Json json = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
  const bool sound = json.is_object() && json.value("version", Json()) == kCacheVersion &&
                     json.value("plans", Json()).is_object();
  return sound ? json : empty;
}

void write_file(const std::filesystem::path& file, const std::string& text) {
  std::error_code error;
  std::string temporary = file.string() + ".XXXXXX";
  const int descriptor = mkstemp(temporary.data());
  if (descriptor < 0) return;
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::write(descriptor, text.data() + done, text.size() - done);
    if (count <= 0) break;
    done += static_cast<std::size_t>(count);
  }
  const bool complete = ::close(descriptor) == 0 && done == text.size();
  if (complete) std::filesystem::rename(temporary, file, error);
  if (!complete || error) std::filesystem::remove(temporary, error);
}

}  // namespace

std::filesystem::path cache_file(const std::string& option) {
  std::error_code error;
  if (option == "off") return {};
  if (!option.empty()) {
    const std::filesystem::path path = option;
    return std::filesystem::is_directory(path, error) ? path / kFileName : path;
  }
  const std::string folder = environment("GOSSAMER_CACHE");
  if (folder == "off") return {};
  if (!folder.empty()) return std::filesystem::path(folder) / kFileName;
  const std::string cache_home = environment("XDG_CACHE_HOME");
  if (!cache_home.empty()) return std::filesystem::path(cache_home) / "gossamer" / kFileName;
  const std::string home = environment("HOME");
  if (home.empty()) return {};
  return std::filesystem::path(home) / ".cache" / "gossamer" / kFileName;
}

std::string cache_key(const LinearDesc& desc, const Machine& machine, const DensePeer& dense,
                      const PlanOptions& options, const std::string& forced) {
  const std::string_view peer = dense.run ? "timed" : dense.seconds ? "modelled" : "none";
  return fmt::format(
      "machine={} processor={} isa={:#x} cores={} caches={}/{}/{} gossamer={} table={:08x} "
      "batch={} out={} in={} pattern={} density={:.2g} weight={} activation={} bias={} residual={} "
      "act={} threads={} memory={} overhead_ns={:.0f} budget_ms={:.0f} dense={}:{} kernel={}",
      machine.name, machine.processor, machine.isa, machine.cores, machine.l1d_bytes,
      machine.l2_bytes, machine.l3_bytes, GOSSAMER_VERSION, table_snapshot().version, desc.batch,
      desc.out, desc.in, pattern_kind(desc.pattern), desc.density, dtype_name(desc.weight_dtype),
      dtype_name(desc.activation_dtype), desc.epilogue.bias, desc.epilogue.residual,
      static_cast<int>(desc.epilogue.activation), options.parallel.threads,
      memory_word(options.memory), std::round(options.call_overhead * 1e8) * 10,
      options.seconds_budget * 1e3, peer, dense.name, forced);
}

std::optional<Plan> read_cached_plan(const std::filesystem::path& file, const std::string& key,
                                     const LinearDesc& desc, const Machine& machine) {
  return read_cached_plan(file, key,
                          [&](const Plan& plan) { return runs_here(plan, desc, machine); });
}

std::optional<Plan> read_cached_plan(const std::filesystem::path& file, const std::string& key,
                                     const std::function<bool(const Plan&)>& sound) {
  try {
    const Json json = load(file);
    const auto entry = json.at("plans").find(key);
    if (entry == json.at("plans").end()) return std::nullopt;
    const std::optional<Plan> plan = from_json(*entry);
    return plan && sound(*plan) ? plan : std::nullopt;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

void write_cached_plan(const std::filesystem::path& file, const std::string& key,
                       const Plan& plan) {
  try {
    std::error_code error;
    std::filesystem::create_directories(file.parent_path(), error);
    const FolderLock lock(file.parent_path());
    Json json = load(file);
    if (json.at("plans").size() >= kMaxPlans) json["plans"] = Json::object();
    json["plans"][key] = to_json(plan);
    write_file(file, json.dump(1));
  } catch (const Json::exception&) {
    return;  // a processor name that is not UTF-8, say: measured again next time
  }
}

}  // namespace gossamer::plan
