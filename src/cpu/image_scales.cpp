// SPDX-License-Identifier: BSD-3-Clause
// Scales of a convolution's images: one pass over X, bound by reading it.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/quantize_task.h"
#include "gossamer/conv.h"
#include "gossamer/machine.h"

namespace gossamer {
namespace {

#include "cpu/largest.inl"

using Function = std::int32_t (*)(const float* x, std::int64_t count);

Function best_function() {
#if defined(__x86_64__)
  if (host_machine().has(kIsaAvx512)) return cpu::avx512_largest_bits;
  if (host_machine().has(kIsaAvx2)) return cpu::avx2_largest_bits;
#endif
  return largest_bits;
}

/// An image as runs of neighbouring floats.
struct Lines {
  std::int64_t outer;
  std::int64_t inner;
  std::int64_t length;
  std::int64_t outer_stride;
  std::int64_t inner_stride;

  explicit Lines(const Conv2dArgs& args) {
    const Conv2dShape& s = args.shape;
    const ImageStrides& x = args.x_strides;
    if (x.channels_last()) {
      *this = {s.height, s.width, s.in_channels, x.row, x.column};
    } else {
      *this = {s.in_channels, s.height, s.width, x.channel, x.row};
    }
    if (inner_stride != length) return;
    length *= inner;
    inner = 1;
  }
  Lines(std::int64_t outer_count, std::int64_t inner_count, std::int64_t floats,
        std::int64_t outer_step, std::int64_t inner_step)
      : outer(outer_count),
        inner(inner_count),
        length(floats),
        outer_stride(outer_step),
        inner_stride(inner_step) {}
};

float scale_of(std::int32_t bits) {
  if (bits >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
  const auto largest = std::bit_cast<float>(bits);
  return 127.0f / largest <= std::numeric_limits<float>::max() ? largest / 127.0f : 0.0f;
}

}  // namespace

void image_scales(const Conv2dArgs& args, float* scale) {
  constexpr std::int64_t kMinInputsPerThread = 32768;  // below, waking a thread costs more
  static const Function function = best_function();
  const Lines lines(args);
  const std::int64_t images = args.shape.images;
  const std::int64_t all = images * lines.outer;
  const auto* x = static_cast<const float*>(args.x);
  std::vector<std::atomic<std::int32_t>> largest(static_cast<std::size_t>(images));
  const std::int64_t parts =
      std::clamp(all * lines.inner * lines.length / kMinInputsPerThread, std::int64_t{1},
                 std::int64_t{std::max(args.parallel.threads, 1)});
  parallel_for(args.parallel, parts, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = all * begin / parts; i < all * end / parts; ++i) {
      const std::int64_t image = i / lines.outer;
      const float* line = x + image * args.x_strides.image + i % lines.outer * lines.outer_stride;
      std::int32_t bits = 0;
      for (std::int64_t j = 0; j < lines.inner; ++j) {
        bits = std::max(bits, function(line + j * lines.inner_stride, lines.length));
      }
      auto& most = largest[static_cast<std::size_t>(image)];
      std::int32_t before = most.load(std::memory_order_relaxed);
      while (before < bits && !most.compare_exchange_weak(before, bits)) {
      }
    }
  });
  for (std::int64_t i = 0; i < images; ++i) {
    scale[i] = scale_of(largest[static_cast<std::size_t>(i)].load());
  }
}

}  // namespace gossamer
