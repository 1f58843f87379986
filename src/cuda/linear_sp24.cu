// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/linear_sp24.h"

#include <array>
#include <vector>

#include "cuda/sm80/rows.h"
#include "cuda/sm90/rows.h"

namespace gossamer::cuda {

std::span<const LinearSp24Kernel> linear_sp24_kernels() {
  static const std::vector<LinearSp24Kernel> rows = [] {
    std::vector<LinearSp24Kernel> all;
    sm90::add_decode_rows(all);
    sm90::add_gemm_bf16_rows(all);
    sm90::add_gemm_f16_rows(all);
    sm90::add_gemm_f8_rows(all);
    sm90::add_gemm_i8_rows(all);
    sm80::add_mma_rows(all);
    return all;
  }();
  return rows;
}

const LinearSp24Kernel* find_linear_sp24(std::string_view name) {
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

int tuned_row_of(const LinearSp24Kernel& wanted) {
  const auto tuned = [&](const LinearSp24Kernel& row) {
    constexpr std::size_t kInstructions = 4;  // "sm90"
    return row.dtype == wanted.dtype && row.name.find("_unaligned") == std::string_view::npos &&
           row.name.substr(0, kInstructions) == wanted.name.substr(0, kInstructions);
  };
  if (!tuned(wanted)) return 0;
  int place = 0;
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (!tuned(row)) continue;
    ++place;
    if (row.name == wanted.name) return place <= kMostTunedRows ? place : 0;
  }
  return 0;
}

int linear_sp24_table(DType dtype) {
  static const std::array<int, 256> tables = [] {
    std::array<std::uint32_t, 256> hashes{};
    for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
      std::uint32_t& hash = hashes[static_cast<std::uint8_t>(row.dtype)];
      for (const char c : row.name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x01000193u;
      hash *= 0x9e3779b9u;
    }
    std::array<int, 256> found{};
    for (std::size_t i = 0; i < found.size(); ++i) {
      found[i] = static_cast<int>(hashes[i] >> 30);
    }
    return found;
  }();
  static_assert(kSp24Tables == 4);
  return tables[static_cast<std::uint8_t>(dtype)];
}

namespace {

/// What a choice depends on.
struct Question {
  std::int64_t out = -1;
  std::int64_t in = 0;
  std::int64_t tokens = 0;
  std::int64_t x_stride = 0;
  std::uintptr_t x_misalignment = 0;
  bool accurate_sums = false;
  int tuned_row = 0;
  DType dtype = DType::kBFloat16;
  int device = 0;
  friend bool operator==(const Question&, const Question&) = default;
};

struct Answer {
  Question question;
  const LinearSp24Kernel* kernel = nullptr;
};

/// A thread remembers its last questions: the same layers are called again and again.
Answer& slot_of(const Question& q) {
  constexpr std::size_t kSlots = 256;
  thread_local std::array<Answer, kSlots> slots{};
  std::uint64_t hash = 0;
  for (const std::int64_t part : {q.out, q.in, q.tokens, q.x_stride}) {
    hash = (hash ^ static_cast<std::uint64_t>(part)) * 0x9e3779b97f4a7c15u;
  }
  hash ^= static_cast<std::uint64_t>(q.tuned_row) << 45;
  return slots[(hash >> 40) % kSlots];
}

bool can_run(const LinearSp24Kernel& row, const LinearSp24Args& args, const DeviceInfo& device) {
  if (row.dtype != args.dtype || (args.accurate_sums && !row.tile.accurate_sums)) return false;
  return row.refuses(row, args, device).empty();
}

const LinearSp24Kernel* ask_all(const LinearSp24Args& args, const DeviceInfo& device) {
  const std::string_view own = device.compute_major == 9 ? "sm90" : "sm80";
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (args.tuned_row == 0) break;
    const bool is_it =
        row.name.starts_with(own) && row.dtype == args.dtype && tuned_row_of(row) == args.tuned_row;
    if (is_it && can_run(row, args, device)) return &row;
  }
  const LinearSp24Kernel* best = nullptr;
  double least = 0.0;
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (!can_run(row, args, device)) continue;
    const double seconds = row.seconds(row, args, device);
    if (best == nullptr || seconds < least) {
      best = &row;
      least = seconds;
    }
  }
  return best;
}

}  // namespace

const LinearSp24Kernel* choose_linear_sp24(const LinearSp24Args& args, const DeviceInfo& device) {
  constexpr std::uintptr_t kAlignment = 16;
  const Question question{args.out,
                          args.in,
                          args.tokens,
                          args.x_stride,
                          reinterpret_cast<std::uintptr_t>(args.x) % kAlignment,
                          args.accurate_sums,
                          args.tuned_row,
                          args.dtype,
                          device.index};
  Answer& slot = slot_of(question);
  if (!(slot.question == question)) slot = {question, ask_all(args, device)};
  return slot.kernel;
}

}  // namespace gossamer::cuda
