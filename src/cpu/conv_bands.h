// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/conv_bands_task.h"
#include "gossamer/conv.h"

namespace gossamer::cpu {

/// Rows and vectors of a panel (conv_bands_task.h).
struct BandShape {
  std::int64_t rows = 1;
  std::int64_t vectors = 1;
  std::int64_t all() const { return rows * vectors; }
};

/// Which input rows the bands of an output see, and where a tile holds them.
class BandRows {
 public:
  BandRows(const Conv2dShape& shape, std::int64_t rows);
  /// count() of such an object.
  static std::int64_t count(const Conv2dShape& shape, std::int64_t rows);

  /// Rows of a tile for one channel and one horizontal tap.
  std::int64_t count() const { return static_cast<std::int64_t>(inputs_.size()); }
  /// The input row that tile row `i` holds, counted from the one that the band's first output row
  /// and the first vertical tap see.
  std::int64_t input(std::int64_t i) const { return inputs_[static_cast<std::size_t>(i)]; }
  /// The first of the tile rows that vertical tap `tap` sees.
  std::int64_t first_of(std::int64_t tap) const { return first_[static_cast<std::size_t>(tap)]; }

 private:
  /// take(tap, step, fresh) for all vertical taps: with stride s, those that are a multiple of s
  /// rows apart share input rows. Tap `tap` is the step-th of its kind and sees `fresh` rows that
  /// the one before it does not.
  template <typename F>
  static void visit(const Conv2dShape& shape, std::int64_t rows, const F& take);

  std::vector<std::int64_t> inputs_;
  std::vector<std::int64_t> first_;
};

/// The panels of a convolution's output, one after the other, and their tiles. One thread keeps one
/// and moves it along. Columns count through the bands of an image and through the images.
class BandPanel {
 public:
  /// Neighbouring columns of one band.
  struct Run {
    std::int64_t image;
    std::int64_t row;   ///< the band's first of the output
    std::int64_t rows;  ///< of the band that exist
    std::int64_t column;
    std::int64_t length;
    std::int64_t lane;
  };

  BandPanel(const Conv2dArgs& args, const BandRows& rows, BandShape shape, std::int64_t lanes);

  static std::int64_t columns(const Conv2dShape& shape, std::int64_t rows);
  /// Channels that a block of inputs may touch.
  static std::int64_t channels_of(std::int64_t block, std::int64_t taps);

  /// Floats that fill() needs beside the tile for a block that touches `channels`.
  std::int64_t stage_floats(std::int64_t channels) const;

  /// To the columns from `column` on, as many as there are, `last` at most.
  void move_to(std::int64_t column, std::int64_t last);
  const std::vector<Run>& runs() const { return runs_; }

  /// The tile of inputs [begin, end), where input k is tap k % taps of channel k / taps; the first
  /// channel is that of `begin`. Lanes without a column are zero.
  void fill(const ConvFunctions& steps, const ConvBandsFunctions& bands, std::int64_t begin,
            std::int64_t end, float* tile, float* stage) const;

  /// places[k - begin]: the vector of the tile where input k of [begin, end) begins.
  void find_places(std::int64_t begin, std::int64_t end, std::uint16_t* places) const;

 private:
  /// The part of a run that lies in one vector.
  struct Part {
    std::size_t run;
    std::int64_t image;      ///< where it begins in X
    std::int64_t input_row;  ///< that the band's first output row and the first vertical tap see
    std::int64_t vector;
    std::size_t place;  ///< among the parts of that vector
    std::int64_t lane;  ///< of the vector
    std::int64_t length;
  };

  void find_runs(std::int64_t column, std::int64_t last);
  void find_pieces();
  void find_pixels();
  /// The columns of X that a horizontal tap sees of a part, counted from the start of a row.
  ConvPiece columns_of(const Part& part, std::int64_t tap) const;
  std::int64_t first_input_row(const Run& run) const;
  /// What a run sees of an input row.
  std::int64_t width_of(const Run& run) const;
  bool staged() const { return args_.x_strides.channels_last(); }
  /// Where in each plane of X later panels will read, if it is worth asking for.
  std::optional<std::int64_t> upcoming() const;

  const Conv2dArgs& args_;
  const BandRows& rows_;
  BandShape shape_;
  std::int64_t vector_lanes_;
  std::int64_t taps_;
  std::int64_t channel_vectors_;  ///< of a tile
  std::vector<Run> runs_;
  std::vector<Part> parts_;           ///< vector by vector
  std::int64_t parts_of_vector_ = 1;  ///< at most
  std::vector<ConvPiece> pieces_;     ///< of every vector of a channel, as many as that
  // Channels-last only: pixels are transposed to planes first, run by run of every input row.
  std::vector<const void*> pixels_;
  std::vector<std::int64_t> stage_columns_;  ///< where a run's begin in a row
  std::int64_t stage_width_ = 0;
};

}  // namespace gossamer::cpu
