// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/conv_panel.h"

#include <algorithm>

#include "core/layouts.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

/// The part of a run whose input columns `first + i·stride` lie in [0, width).
struct Inside {
  std::int64_t begin;
  std::int64_t end;

  Inside(std::int64_t first, std::int64_t stride, std::int64_t length, std::int64_t width)
      : begin(first < 0 ? std::min(ceil_div(-first, stride), length) : 0),
        end(first >= width ? begin : std::clamp(ceil_div(width - first, stride), begin, length)) {}
};

void clear(float* tile, std::int64_t lanes, std::int64_t channels, std::int64_t count) {
  if (count <= 0) return;
  for (std::int64_t c = 0; c < channels; ++c) std::fill_n(tile + c * lanes, count, 0.0f);
}

}  // namespace

ConvPanel::ConvPanel(const Conv2dArgs& args, std::int64_t pixel, std::int64_t count,
                     std::int64_t lanes)
    : args_(args), pixel_(pixel), count_(count), lanes_(lanes) {
  const std::int64_t width = args.shape.out_width();
  const std::int64_t plane = args.shape.out_height() * width;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t at = pixel + done;
    const std::int64_t length = std::min(count - done, width - at % width);
    rows_[row_count_++] = {at / plane, at % plane / width, at % width, length, done};
    done += length;
  }
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t at = pixel + done;
    const std::int64_t length = std::min(count - done, plane - at % plane);
    images_[image_count_++] = {at / plane, at % plane, length, done};
    done += length;
  }
}

ConvPanel::Tap ConvPanel::tap(std::int64_t index) const {
  const Conv2dShape& s = args_.shape;
  return {index / s.kernel_w * s.dilation_h - s.pad_top,
          index % s.kernel_w * s.dilation_w - s.pad_left};
}

void ConvPanel::fill(const ConvFunctions& steps, std::int64_t begin, std::int64_t end,
                     float* tile) const {
  const std::int64_t all = args_.shape.in_channels;
  const bool last = args_.x_strides.channels_last();
  for (std::int64_t k = begin; k < end;) {
    const std::int64_t channel = k % all;
    const std::int64_t channels = std::min(all - channel, end - k);
    float* to = tile + (k - begin) * lanes_;
    last ? fill_channels_last(steps, tap(k / all), channel, channels, to)
         : fill_planar(steps, tap(k / all), channel, channels, to);
    k += channels;
  }
}

void ConvPanel::fill_planar(const ConvFunctions& steps, const Tap& tap, std::int64_t channel,
                            std::int64_t channels, float* tile) const {
  const Conv2dShape& s = args_.shape;
  const ImageStrides& strides = args_.x_strides;
  const float* plane = static_cast<const float*>(args_.x) + channel * strides.channel;
  for (std::size_t i = 0; i < row_count_; ++i) {
    const RowRun& run = rows_[i];
    float* to = tile + run.lane;
    const std::int64_t y = run.y * s.stride_h + tap.y;
    if (y < 0 || y >= s.height) {
      clear(to, lanes_, channels, run.length);
      continue;
    }
    const std::int64_t x = run.x * s.stride_w + tap.x;
    const Inside inside(x, s.stride_w, run.length, s.width);
    clear(to, lanes_, channels, inside.begin);
    clear(to + inside.end, lanes_, channels, run.length - inside.end);
    if (inside.begin == inside.end) continue;
    const float* from =
        plane + run.image * strides.image + y * strides.row + x + inside.begin * s.stride_w;
    steps.copy({from, strides.channel, s.stride_w, inside.end - inside.begin, channels,
                to + inside.begin, lanes_});
  }
  clear(tile + count_, lanes_, channels, lanes_ - count_);
}

void ConvPanel::fill_channels_last(const ConvFunctions& steps, const Tap& tap, std::int64_t channel,
                                   std::int64_t channels, float* tile) const {
  const Conv2dShape& s = args_.shape;
  const ImageStrides& strides = args_.x_strides;
  std::array<const float*, kMaxLanes> pixels;
  const float* base = static_cast<const float*>(args_.x) + channel;
  for (std::size_t i = 0; i < row_count_; ++i) {
    const RowRun& run = rows_[i];
    const std::int64_t y = run.y * s.stride_h + tap.y;
    const std::int64_t x = run.x * s.stride_w + tap.x;
    const bool row_inside = y >= 0 && y < s.height;
    const Inside inside(x, s.stride_w, row_inside ? run.length : 0, s.width);
    const std::int64_t row = run.image * strides.image + y * strides.row;
    for (std::int64_t t = 0; t < run.length; ++t) {
      const bool seen = t >= inside.begin && t < inside.end;
      pixels[static_cast<std::size_t>(run.lane + t)] =
          seen ? base + row + (x + t * s.stride_w) * strides.column : nullptr;
    }
  }
  std::fill(pixels.begin() + count_, pixels.begin() + lanes_, nullptr);
  steps.transpose({pixels.data(), channels, tile, lanes_});
}

}  // namespace gossamer::cpu
