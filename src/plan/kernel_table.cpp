// SPDX-License-Identifier: BSD-3-Clause
#include "plan/kernel_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <atomic>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>

#include "core/fail.h"
#include "core/layouts.h"
#include "cpu/registration.h"

namespace gossamer {
namespace plan {
namespace {

constexpr std::uint32_t kFnvOffset = 2166136261u;
constexpr std::uint32_t kFnvPrime = 16777619u;

std::uint32_t fnv1a(std::string_view text, std::uint32_t hash = kFnvOffset) {
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * kFnvPrime;
  return hash;
}

std::shared_ptr<const TableSnapshot> make_snapshot(const std::vector<LinearKernel>& rows) {
  auto next = std::make_shared<TableSnapshot>();
  next->rows = rows;
  std::sort(next->rows.begin(), next->rows.end(),
            [](const LinearKernel& a, const LinearKernel& b) { return a.name < b.name; });
  next->version = kFnvOffset;
  for (const LinearKernel& row : next->rows) {
    next->by_hash.emplace_back(fnv1a(row.name), &row);
    next->version = fnv1a("\n", fnv1a(row.name, next->version));
  }
  std::sort(next->by_hash.begin(), next->by_hash.end());
  return next;
}

class KernelTable {
 public:
  void add(const LinearKernel& kernel) {
    const std::lock_guard lock(mutex_);
    register_builtin();
    check(kernel);
    rows_.push_back(kernel);
    rows_.back().name = names_.emplace_back(kernel.name);  // the caller's text may go away
    current_.store(nullptr, std::memory_order_release);
  }

  const TableSnapshot& snapshot() {
    // One load on the path of every forward; a new snapshot is made only after a registration, so
    // that a batch of registrations costs one.
    const TableSnapshot* now = current_.load(std::memory_order_acquire);
    return now != nullptr ? *now : publish();
  }

 private:
  const TableSnapshot& publish() {
    const std::lock_guard lock(mutex_);
    register_builtin();
    const TableSnapshot* now = current_.load(std::memory_order_acquire);
    if (now != nullptr) return *now;
    published_.push_back(make_snapshot(rows_));
    current_.store(published_.back().get(), std::memory_order_release);
    return *published_.back();
  }

  // The CPU kernels come first, so that a door's row can never take their names. They register
  // through add(), which the recursive mutex and the flag let back in.
  void register_builtin() {
    if (builtin_done_) return;
    builtin_done_ = true;
    try {
      register_cpu_kernels();
    } catch (...) {
      rows_.clear();
      builtin_done_ = false;
      throw;
    }
  }

  void check(const LinearKernel& kernel) const {
    if (kernel.name.empty() || kernel.run == nullptr || kernel.seconds == nullptr) {
      detail::fail(ErrorCode::kInvalidArgument,
                   "kernel '{}' cannot be registered: it needs a name, run and seconds",
                   kernel.name);
    }
    const std::uint32_t hash = fnv1a(kernel.name);
    const auto clash = std::find_if(rows_.begin(), rows_.end(), [&](const LinearKernel& row) {
      return fnv1a(row.name) == hash;
    });
    if (clash != rows_.end() && clash->name == kernel.name) {
      detail::fail(ErrorCode::kInvalidArgument,
                   "kernel '{}' is registered already; names are unique", kernel.name);
    }
    // A plan stores hashes: 0 means none, and two names of one hash would run for each other.
    if (clash != rows_.end() || hash == 0 || hash == fnv1a(kDenseKernel)) {
      detail::fail(ErrorCode::kInvalidArgument,
                   "kernel '{}' has the name hash {:#010x} of {}; give it another name",
                   kernel.name, hash,
                   clash != rows_.end() ? fmt::format("kernel '{}'", clash->name)
                   : hash == 0          ? "no kernel"
                                        : "the dense kernel");
    }
  }

  std::recursive_mutex mutex_;
  bool builtin_done_ = false;
  std::deque<std::string> names_;
  std::vector<LinearKernel> rows_;
  std::vector<std::shared_ptr<const TableSnapshot>> published_;
  std::atomic<const TableSnapshot*> current_{nullptr};
};

KernelTable& table() {
  // Never destroyed: threads of a host program may still run kernels while statics are torn down.
  static KernelTable* const instance = std::make_unique<KernelTable>().release();
  return *instance;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replace});
    }
  }
  return row.back();
}

std::vector<std::string_view> nearest_names(std::string_view name) {
  constexpr std::size_t kShown = 3;
  std::vector<std::pair<std::size_t, std::string_view>> ranked;
  for (const LinearKernel& row : table_snapshot().rows) {
    ranked.emplace_back(edit_distance(name, row.name), row.name);
  }
  for (const Conv2dKernel& row : conv2d_kernels()) {
    ranked.emplace_back(edit_distance(name, row.name), row.name);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::string_view> names;
  for (std::size_t i = 0; i < std::min(kShown, ranked.size()); ++i) {
    names.push_back(ranked[i].second);
  }
  return names;
}

}  // namespace

const TableSnapshot& table_snapshot() { return table().snapshot(); }

const std::string& environment_kernel() {
  static const std::string name = [] {
    const char* text = std::getenv("GOSSAMER_KERNEL");
    return std::string(text != nullptr ? text : "");
  }();
  return name;
}

const LinearKernel& require_kernel(std::string_view name, std::string_view source) {
  const LinearKernel* row = find_linear_kernel(name);
  if (row != nullptr) return *row;
  detail::fail(ErrorCode::kInvalidArgument,
               "{} is '{}', and there is no such kernel; the nearest names are {} ('{}' "
               "and the rows of `gossamer doctor` are accepted)",
               source, name, fmt::join(nearest_names(name), ", "), kDenseKernel);
}

std::optional<Layout> layout_of(std::string_view name) {
  if (const LinearKernel* row = find_linear_kernel(name)) return row->layout;
  if (const Conv2dKernel* row = find_conv2d_kernel(name)) return row->layout;
  return std::nullopt;
}

const LinearKernel* environment_linear_row() {
  const std::string& name = environment_kernel();
  if (name.empty() || name == kDenseKernel || find_conv2d_kernel(name) != nullptr) return nullptr;
  return &require_kernel(name, "GOSSAMER_KERNEL");
}

const Conv2dKernel* environment_conv2d_row() {
  const std::string& name = environment_kernel();
  const Conv2dKernel* row = find_conv2d_kernel(name);
  if (row == nullptr) environment_linear_row();  // refuses what is neither
  return row;
}

}  // namespace plan

void register_linear_kernel(const LinearKernel& kernel) { plan::table().add(kernel); }

std::span<const LinearKernel> linear_kernels() { return plan::table_snapshot().rows; }

const LinearKernel* find_linear_kernel(std::string_view name) {
  const LinearKernel* row = plan::table_snapshot().find(kernel_hash(name));
  return row != nullptr && row->name == name ? row : nullptr;
}

std::string why_not(const LinearKernel& kernel, const LinearDesc& desc, const Machine& machine) {
  if (!machine.has(kernel.needs)) {
    return fmt::format("needs {}, which {} does not have",
                       fmt::join(isa_names(kernel.needs & ~machine.isa), ", "), machine.name);
  }
  if (desc.weight_dtype != kernel.weight_dtype) {
    return fmt::format("computes {} weights, this one is {}", dtype_name(kernel.weight_dtype),
                       dtype_name(desc.weight_dtype));
  }
  if (desc.activation_dtype != kernel.activation_dtype) {
    return fmt::format("computes {} activations, these are {}", dtype_name(kernel.activation_dtype),
                       dtype_name(desc.activation_dtype));
  }
  std::string fault = detail::layout_fault(kernel.layout, desc.pattern);
  if (!fault.empty() || kernel.refuses == nullptr) return fault;
  return kernel.refuses(desc);
}

std::uint32_t kernel_hash(std::string_view name) { return plan::fnv1a(name); }

int token_bucket(std::int64_t tokens) {
  int bucket = 0;
  while (bucket < kTokenBuckets - 1 &&
         tokens > kTokenBucketEnds[static_cast<std::size_t>(bucket)]) {
    ++bucket;
  }
  return bucket;
}

}  // namespace gossamer
