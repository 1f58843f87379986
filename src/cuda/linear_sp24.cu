// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/linear_sp24.h"

#include <array>
#include <vector>

#include "core/experimental.h"
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

std::string refuse_experiment(std::string_view name) {
  if (detail::is_experiment_enabled(name)) return {};
  return "has not run on hardware yet; GOSSAMER_EXPERIMENTAL=" + std::string(name) +
         " in the environment allows it";
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
  return slots[(hash >> 40) % kSlots];
}

const LinearSp24Kernel* ask_all(const LinearSp24Args& args, const DeviceInfo& device) {
  const LinearSp24Kernel* best = nullptr;
  double least = 0.0;
  for (const LinearSp24Kernel& row : linear_sp24_kernels()) {
    if (row.dtype != args.dtype || (args.accurate_sums && !row.tile.accurate_sums)) continue;
    if (!row.refuses(row, args, device).empty()) continue;
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
                          args.dtype,
                          device.index};
  Answer& slot = slot_of(question);
  if (!(slot.question == question)) slot = {question, ask_all(args, device)};
  return slot.kernel;
}

}  // namespace gossamer::cuda
