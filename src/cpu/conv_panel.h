// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/conv_task.h"
#include "gossamer/conv.h"

namespace gossamer::cpu {

/// The pixels of a convolution's output, panel by panel, and where in X each tap finds theirs. One
/// thread keeps one and moves it along.
class ConvPanel {
 public:
  /// The widest panel: 8 vectors of 16.
  static constexpr std::int64_t kMaxLanes = 128;

  /// Pixels of one image; `pixel` counts from its first.
  struct ImageRun {
    std::int64_t image;
    std::int64_t pixel;
    std::int64_t length;
    std::int64_t lane;  ///< where in the panel they begin
  };

  /// `vector_lanes`: of the functions that will fill it.
  ConvPanel(const Conv2dArgs& args, std::int64_t vector_lanes);

  /// To `count` pixels from `pixel` on (image by image, row by row), in a panel of `lanes`.
  void move_to(std::int64_t pixel, std::int64_t count, std::int64_t lanes);

  std::int64_t first_pixel() const { return pixel_; }
  std::int64_t pixels() const { return count_; }
  std::span<const ImageRun> image_runs() const { return {images_.data(), image_count_}; }

  /// The tile of inputs [begin, end), where input k is tap k % taps of channel k / taps. Lanes
  /// without a pixel are zero.
  void fill(const ConvFunctions& steps, std::int64_t begin, std::int64_t end, float* tile) const;

  /// The same where the inputs lie as in the packed matrix: input k is channel k % channels of tap
  /// k / channels.
  void fill_by_tap(const ConvFunctions& steps, std::int64_t begin, std::int64_t end,
                   float* tile) const;

 private:
  /// Pixels of one output row as one tap sees them: some before X begins, some inside.
  struct RowRun {
    std::int64_t offset;  ///< of the first pixel inside, in elements of X
    std::int64_t lane;
    std::int64_t before;
    std::int64_t inside;
  };

  void find_runs(std::int64_t tap, std::vector<RowRun>& runs) const;
  std::span<const RowRun> runs_of(std::int64_t tap) const;
  /// The runs of every tap, cut at the ends of vectors.
  void find_pieces();
  /// Channels [channel, channel + channels) as one tap sees them, `stride` floats apart.
  void fill_tap(const ConvFunctions& steps, std::int64_t tap, std::int64_t channel,
                std::int64_t channels, float* tile, std::int64_t stride) const;
  void fill_planar(const ConvFunctions& steps, std::int64_t tap, const std::byte* x,
                   std::int64_t channels, float* tile, std::int64_t stride) const;
  void fill_channels_last(const ConvFunctions& steps, std::span<const RowRun> runs,
                          const std::byte* x, std::int64_t channels, float* tile,
                          std::int64_t stride) const;

  const Conv2dArgs& args_;
  std::int64_t bytes_;  ///< of an element of X
  std::int64_t taps_;
  std::int64_t vector_lanes_;
  std::int64_t pixel_ = 0;
  std::int64_t count_ = 0;
  std::int64_t lanes_ = 0;
  std::size_t image_count_ = 0;
  std::array<ImageRun, kMaxLanes> images_;
  std::vector<RowRun> runs_;  ///< of all taps, tap by tap
  std::size_t runs_of_tap_ = 0;
  std::vector<ConvPiece> pieces_;          ///< where X is planar: of all taps, vector by vector
  std::vector<std::uint32_t> piece_ends_;  ///< [taps][vectors], counted from the tap's first piece
  std::vector<std::size_t> first_pieces_;  ///< [taps]
};

}  // namespace gossamer::cpu
