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

void clear(float* tile, std::int64_t stride, std::int64_t channels, std::int64_t count) {
  if (count <= 0) return;
  for (std::int64_t c = 0; c < channels; ++c) std::fill_n(tile + c * stride, count, 0.0f);
}

}  // namespace

ConvPanel::ConvPanel(const Conv2dArgs& args)
    : args_(args),
      bytes_(dtype_bytes(activation_dtype(args))),
      taps_(args.shape.kernel_h * args.shape.kernel_w) {}

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
      RowRun run{0, image.lane + done, length, 0, 0};
      const std::int64_t y = row * s.stride_h + tap_y;
      const std::int64_t x = column * s.stride_w + tap_x;
      if (y >= 0 && y < s.height) {
        run.before = std::min(first_at_least(0, x, s.stride_w), length);
        run.inside = std::min(first_at_least(s.width, x, s.stride_w), length) - run.before;
        run.behind = length - run.before - run.inside;
        run.offset = image.image * strides.image + y * strides.row +
                     (x + run.before * s.stride_w) * strides.column;
      }
      runs.push_back(run);
      done += length;
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
  const std::span<const RowRun> runs(runs_.data() + static_cast<std::size_t>(tap) * runs_of_tap_,
                                     runs_of_tap_);
  const std::byte* x = static_cast<const std::byte*>(args_.x) + channel * strides.channel * bytes_;
  strides.channels_last() ? fill_channels_last(steps, runs, x, channels, tile, stride)
                          : fill_planar(steps, runs, x, channels, tile, stride);
}

void ConvPanel::fill_planar(const ConvFunctions& steps, std::span<const RowRun> runs,
                            const std::byte* x, std::int64_t channels, float* tile,
                            std::int64_t stride) const {
  const std::int64_t plane = args_.x_strides.channel;
  for (const RowRun& run : runs) {
    float* to = tile + run.lane;
    clear(to, stride, channels, run.before);
    to += run.before;
    if (run.inside > 0) {
      steps.copy(
          {x + run.offset * bytes_, plane, args_.shape.stride_w, run.inside, channels, to, stride});
    }
    clear(to + run.inside, stride, channels, run.behind);
  }
  clear(tile + count_, stride, channels, lanes_ - count_);
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
