// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/conv_panel.h"

#include <algorithm>

#include "core/layouts.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

/// ceil((a - b) / c) for a, c > 0, never negative.
std::int64_t first_at_least(std::int64_t a, std::int64_t b, std::int64_t c) {
  return a <= b ? 0 : ceil_div(a - b, c);
}

}  // namespace

ConvPanel::ConvPanel(const Conv2dArgs& args, std::int64_t vector_lanes)
    : args_(args),
      bytes_(dtype_bytes(activation_dtype(args))),
      taps_(args.shape.kernel_h * args.shape.kernel_w),
      vector_lanes_(vector_lanes) {}

void ConvPanel::move_to(std::int64_t pixel, std::int64_t count, std::int64_t lanes) {
  pixel_ = pixel;
  count_ = count;
  lanes_ = lanes;
  image_count_ = 0;
  const std::int64_t plane = args_.shape.out_height() * args_.shape.out_width();
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t at = pixel + done;
    const std::int64_t length = std::min(count - done, plane - at % plane);
    images_[image_count_++] = {at / plane, at % plane, length, done};
    done += length;
  }
  runs_.clear();
  for (std::int64_t tap = 0; tap < taps_; ++tap) find_runs(tap, runs_);
  runs_of_tap_ = runs_.size() / static_cast<std::size_t>(taps_);
  if (!args_.x_strides.channels_last()) find_pieces();
}

void ConvPanel::find_runs(std::int64_t tap, std::vector<RowRun>& runs) const {
  const Conv2dShape& s = args_.shape;
  const ImageStrides& strides = args_.x_strides;
  const std::int64_t tap_y = tap / s.kernel_w * s.dilation_h - s.pad_top;
  const std::int64_t tap_x = tap % s.kernel_w * s.dilation_w - s.pad_left;
  const std::int64_t width = s.out_width();
  for (const ImageRun& image : image_runs()) {
    std::int64_t row = image.pixel / width;
    std::int64_t column = image.pixel % width;
    for (std::int64_t done = 0; done < image.length; ++row, column = 0) {
      const std::int64_t length = std::min(image.length - done, width - column);
      RowRun run{0, image.lane + done, length, 0};
      const std::int64_t y = row * s.stride_h + tap_y;
      const std::int64_t x = column * s.stride_w + tap_x;
      if (y >= 0 && y < s.height) {
        run.before = std::min(first_at_least(0, x, s.stride_w), length);
        run.inside = std::min(first_at_least(s.width, x, s.stride_w), length) - run.before;
        run.offset = image.image * strides.image + y * strides.row +
                     (x + run.before * s.stride_w) * strides.column;
      }
      runs.push_back(run);
      done += length;
    }
  }
}

std::span<const ConvPanel::RowRun> ConvPanel::runs_of(std::int64_t tap) const {
  return {runs_.data() + static_cast<std::size_t>(tap) * runs_of_tap_, runs_of_tap_};
}

void ConvPanel::find_pieces() {
  const std::int64_t step = args_.shape.stride_w;
  const std::int64_t vectors = lanes_ / vector_lanes_;
  pieces_.clear();
  piece_ends_.clear();
  first_pieces_.clear();
  for (std::int64_t tap = 0; tap < taps_; ++tap) {
    const std::span<const RowRun> runs = runs_of(tap);
    first_pieces_.push_back(pieces_.size());
    for (std::int64_t v = 0; v < vectors; ++v) {
      const std::int64_t lane = v * vector_lanes_;
      for (const RowRun& run : runs) {
        const std::int64_t start = run.lane + run.before;
        const std::int64_t begin = std::max(start, lane);
        const std::int64_t end = std::min(start + run.inside, lane + vector_lanes_);
        if (begin >= end) continue;
        const std::uint32_t lanes = ((1u << (end - begin)) - 1u) << (begin - lane);
        pieces_.push_back({run.offset + (lane - start) * step, lanes});
      }
      piece_ends_.push_back(static_cast<std::uint32_t>(pieces_.size() - first_pieces_.back()));
    }
  }
}

void ConvPanel::fill(const ConvFunctions& steps, std::int64_t begin, std::int64_t end,
                     float* tile) const {
  for (std::int64_t tap = 0; tap < taps_; ++tap) {
    const std::int64_t channel = first_at_least(begin, tap, taps_);
    const std::int64_t channels = first_at_least(end, tap, taps_) - channel;
    float* to = tile + (channel * taps_ + tap - begin) * lanes_;
    fill_tap(steps, tap, channel, channels, to, taps_ * lanes_);
  }
}

void ConvPanel::fill_by_tap(const ConvFunctions& steps, std::int64_t begin, std::int64_t end,
                            float* tile) const {
  const std::int64_t all = args_.shape.in_channels;
  for (std::int64_t k = begin; k < end;) {
    const std::int64_t channels = std::min(all - k % all, end - k);
    fill_tap(steps, k / all, k % all, channels, tile + (k - begin) * lanes_, lanes_);
    k += channels;
  }
}

void ConvPanel::fill_tap(const ConvFunctions& steps, std::int64_t tap, std::int64_t channel,
                         std::int64_t channels, float* tile, std::int64_t stride) const {
  if (channels <= 0) return;
  const ImageStrides& strides = args_.x_strides;
  const std::byte* x = static_cast<const std::byte*>(args_.x) + channel * strides.channel * bytes_;
  strides.channels_last() ? fill_channels_last(steps, runs_of(tap), x, channels, tile, stride)
                          : fill_planar(steps, tap, x, channels, tile, stride);
}

void ConvPanel::fill_planar(const ConvFunctions& steps, std::int64_t tap, const std::byte* x,
                            std::int64_t channels, float* tile, std::int64_t stride) const {
  const std::int64_t vectors = lanes_ / vector_lanes_;
  steps.copy({x, args_.x_strides.channel, args_.shape.stride_w, channels,
              pieces_.data() + first_pieces_[static_cast<std::size_t>(tap)],
              piece_ends_.data() + tap * vectors, vectors, tile, stride});
}

void ConvPanel::fill_channels_last(const ConvFunctions& steps, std::span<const RowRun> runs,
                                   const std::byte* x, std::int64_t channels, float* tile,
                                   std::int64_t stride) const {
  std::array<const void*, kMaxLanes> pixels;
  std::fill_n(pixels.begin(), lanes_, nullptr);
  const std::int64_t step = args_.shape.stride_w * args_.x_strides.column * bytes_;
  for (const RowRun& run : runs) {
    const std::byte* from = x + run.offset * bytes_;
    for (std::int64_t t = 0; t < run.inside; ++t, from += step) {
      pixels[static_cast<std::size_t>(run.lane + run.before + t)] = from;
    }
  }
  steps.transpose({pixels.data(), channels, tile, stride, lanes_});
}

}  // namespace gossamer::cpu
