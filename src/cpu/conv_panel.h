// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "cpu/conv_task.h"
#include "cpu/kcsr_task.h"
#include "gossamer/conv.h"

namespace gossamer::cpu {

/// Consecutive output pixels (image by image, row by row), and where in X each tap finds theirs.
class ConvPanel {
 public:
  /// The widest panel: 8 vectors of 16.
  static constexpr std::int64_t kMaxLanes = 128;

  /// Pixels of one output row.
  struct RowRun {
    std::int64_t image;
    std::int64_t y;
    std::int64_t x;
    std::int64_t length;
    std::int64_t lane;  ///< where in the panel they begin
  };
  /// Pixels of one image; `pixel` counts from its first.
  struct ImageRun {
    std::int64_t image;
    std::int64_t pixel;
    std::int64_t length;
    std::int64_t lane;
  };

  /// `count` pixels from `pixel` on, in a panel of `lanes`.
  ConvPanel(const Conv2dArgs& args, std::int64_t pixel, std::int64_t count, std::int64_t lanes);

  std::int64_t first_pixel() const { return pixel_; }
  std::int64_t pixels() const { return count_; }
  std::span<const ImageRun> image_runs() const { return {images_.data(), image_count_}; }

  /// The tile of inputs [begin, end): input k is tap k / IC, channel k % IC. Lanes without a pixel
  /// are zero.
  void fill(const ConvFunctions& steps, std::int64_t begin, std::int64_t end, float* tile) const;

 private:
  struct Tap {
    std::int64_t y;  ///< displacement in input rows
    std::int64_t x;  ///< and columns
  };
  Tap tap(std::int64_t index) const;
  void fill_planar(const ConvFunctions& steps, const Tap& tap, std::int64_t channel,
                   std::int64_t channels, float* tile) const;
  void fill_channels_last(const ConvFunctions& steps, const Tap& tap, std::int64_t channel,
                          std::int64_t channels, float* tile) const;

  const Conv2dArgs& args_;
  std::int64_t pixel_;
  std::int64_t count_;
  std::int64_t lanes_;
  std::size_t row_count_ = 0;
  std::size_t image_count_ = 0;
  std::array<RowRun, kMaxLanes> rows_;
  std::array<ImageRun, kMaxLanes> images_;
};

}  // namespace gossamer::cpu
