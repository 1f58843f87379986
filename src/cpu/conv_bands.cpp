// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/conv_bands.h"

#include <algorithm>
#include <cstddef>

#include "core/layouts.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

/// Planes of a power of two would share few sets of L1.
std::int64_t padded_plane(std::int64_t floats, std::int64_t lanes) {
  const std::int64_t whole = ceil_div(floats, lanes) * lanes;
  return whole % 256 == 0 ? whole + lanes : whole;
}

}  // namespace

template <typename F>
void BandRows::visit(const Conv2dShape& shape, std::int64_t rows, const F& take) {
  for (std::int64_t phase = 0; phase < shape.stride_h; ++phase) {
    std::int64_t before = -1;
    for (std::int64_t tap = 0; tap < shape.kernel_h; ++tap) {
      const std::int64_t offset = tap * shape.dilation_h;
      if (offset % shape.stride_h != phase) continue;
      const std::int64_t step = offset / shape.stride_h;
      take(tap, step, before < 0 ? rows : std::min(step - before, rows));
      before = step;
    }
  }
}

BandRows::BandRows(const Conv2dShape& shape, std::int64_t rows)
    : first_(static_cast<std::size_t>(shape.kernel_h)) {
  visit(shape, rows, [&](std::int64_t tap, std::int64_t step, std::int64_t fresh) {
    first_[static_cast<std::size_t>(tap)] = count() + fresh - rows;
    const std::int64_t phase = tap * shape.dilation_h % shape.stride_h;
    for (std::int64_t r = rows - fresh; r < rows; ++r) {
      inputs_.push_back((step + r) * shape.stride_h + phase);
    }
  });
}

std::int64_t BandRows::count(const Conv2dShape& shape, std::int64_t rows) {
  std::int64_t all = 0;
  visit(shape, rows, [&](std::int64_t, std::int64_t, std::int64_t fresh) { all += fresh; });
  return all;
}

BandPanel::BandPanel(const Conv2dArgs& args, const BandRows& rows, BandShape shape,
                     std::int64_t lanes)
    : args_(args),
      rows_(rows),
      shape_(shape),
      vector_lanes_(lanes),
      taps_(args.shape.kernel_h * args.shape.kernel_w),
      channel_vectors_(args.shape.kernel_w * rows.count() * shape.vectors) {}

std::int64_t BandPanel::columns(const Conv2dShape& shape, std::int64_t rows) {
  return shape.images * ceil_div(shape.out_height(), rows) * shape.out_width();
}

std::int64_t BandPanel::channels_of(std::int64_t block, std::int64_t taps) {
  return (block + taps - 2) / taps + 1;
}

std::int64_t BandPanel::first_input_row(const Run& run) const {
  return run.row * args_.shape.stride_h - args_.shape.pad_top;
}

std::int64_t BandPanel::width_of(const Run& run) const {
  const Conv2dShape& s = args_.shape;
  return (run.length - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
}

std::int64_t BandPanel::stage_floats(std::int64_t channels) const {
  if (!staged()) return 0;
  const Conv2dShape& s = args_.shape;
  // Runs end where rows do.
  const std::int64_t lanes = shape_.vectors * vector_lanes_;
  const std::int64_t runs = lanes / s.out_width() + 2;
  const std::int64_t width = lanes * s.stride_w + runs * (s.kernel_w - 1) * s.dilation_w;
  return channels * (padded_plane(rows_.count() * width, vector_lanes_) + vector_lanes_);
}

void BandPanel::move_to(std::int64_t column, std::int64_t last) {
  find_runs(column, last);
  if (staged()) find_pixels();
  find_pieces();
}

void BandPanel::find_runs(std::int64_t column, std::int64_t last) {
  const Conv2dShape& s = args_.shape;
  const std::int64_t width = s.out_width();
  const std::int64_t bands = ceil_div(s.out_height(), shape_.rows);
  const std::int64_t count = std::min(last - column, shape_.vectors * vector_lanes_);
  runs_.clear();
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t at = column + done;
    const std::int64_t band = at / width % bands;
    const std::int64_t row = band * shape_.rows;
    const std::int64_t length = std::min(count - done, width - at % width);
    runs_.push_back({at / width / bands, row, std::min(shape_.rows, s.out_height() - row),
                     at % width, length, done});
    done += length;
  }
  parts_.clear();
  parts_of_vector_ = 1;
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    for (std::int64_t done = 0; done < run.length;) {
      const std::int64_t lane = (run.lane + done) % vector_lanes_;
      const std::int64_t length = std::min(run.length - done, vector_lanes_ - lane);
      const std::int64_t vector = (run.lane + done) / vector_lanes_;
      const bool another = !parts_.empty() && parts_.back().vector == vector;
      const std::size_t place = another ? parts_.back().place + 1 : 0;
      parts_of_vector_ = std::max(parts_of_vector_, static_cast<std::int64_t>(place) + 1);
      parts_.push_back({i, run.image * args_.x_strides.image, first_input_row(run), vector, place,
                        lane, length});
      done += length;
    }
  }
}

void BandPanel::find_pieces() {
  const Conv2dShape& s = args_.shape;
  const auto parts = static_cast<std::size_t>(parts_of_vector_);
  const std::int64_t tile_rows = rows_.count();
  pieces_.assign(static_cast<std::size_t>(channel_vectors_) * parts, {0, 0});
  for (std::int64_t tap = 0; tap < s.kernel_w; ++tap) {
    for (const Part& part : parts_) {
      const ConvPiece columns = columns_of(part, tap);
      if (columns.lanes == 0) continue;
      const std::int64_t first = tap * tile_rows * shape_.vectors + part.vector;
      ConvPiece* piece = pieces_.data() + static_cast<std::size_t>(first) * parts + part.place;
      for (std::int64_t row = 0; row < tile_rows; ++row) {
        const std::int64_t y = part.input_row + rows_.input(row);
        if (y >= 0 && y < s.height) {
          const std::int64_t base =
              staged() ? row * stage_width_ : part.image + y * args_.x_strides.row;
          *piece = {base + columns.offset, columns.lanes};
        }
        piece += static_cast<std::size_t>(shape_.vectors) * parts;
      }
    }
  }
}

ConvPiece BandPanel::columns_of(const Part& part, std::int64_t tap) const {
  const Conv2dShape& s = args_.shape;
  const Run& run = runs_[part.run];
  // Lane 0 of the vector, in columns of the output counted from the run's first.
  const std::int64_t lane0 = part.vector * vector_lanes_ - run.lane;
  const std::int64_t shift = tap * s.dilation_w;
  const std::int64_t x = (run.column + lane0) * s.stride_w + shift - s.pad_left;
  std::int64_t begin = part.lane;
  std::int64_t end = part.lane + part.length;
  if (x < 0) begin = std::max(begin, ceil_div(-x, s.stride_w));
  end = x >= s.width ? begin : std::min(end, ceil_div(s.width - x, s.stride_w));
  if (begin >= end) return {0, 0};
  const std::uint32_t lanes = ((1u << (end - begin)) - 1u) << begin;
  return {staged() ? stage_columns_[part.run] + lane0 * s.stride_w + shift : x, lanes};
}

void BandPanel::find_pixels() {
  const Conv2dShape& s = args_.shape;
  const ImageStrides& strides = args_.x_strides;
  stage_columns_.clear();
  stage_width_ = 0;
  for (const Run& run : runs_) {
    stage_columns_.push_back(stage_width_);
    stage_width_ += width_of(run);
  }
  pixels_.clear();
  for (std::int64_t row = 0; row < rows_.count(); ++row) {
    for (const Run& run : runs_) {
      const std::int64_t y = first_input_row(run) + rows_.input(row);
      const std::int64_t x = run.column * s.stride_w - s.pad_left;
      const bool outside = y < 0 || y >= s.height;
      const std::int64_t at = run.image * strides.image + y * strides.row;
      for (std::int64_t i = x; i < x + width_of(run); ++i) {
        pixels_.push_back(outside || i < 0 || i >= s.width
                              ? nullptr
                              : static_cast<const float*>(args_.x) + at + i * strides.column);
      }
    }
  }
  pixels_.resize(
      static_cast<std::size_t>(ceil_div(static_cast<std::int64_t>(pixels_.size()), vector_lanes_) *
                               vector_lanes_),
      nullptr);
}

std::optional<std::int64_t> BandPanel::upcoming() const {
  const Run& run = runs_.front();
  const Conv2dShape& s = args_.shape;
  // With a stride a band below is as large as several panels: asking for it gains nothing.
  if (staged() || s.stride_h != 1 || s.stride_w != 1) return std::nullopt;
  const std::int64_t row = first_input_row(run) + shape_.rows + (s.kernel_h - 1) * s.dilation_h;
  if (row < 0 || row >= s.height) return std::nullopt;
  // A panel asks for its share of what the bands below see anew.
  return run.image * args_.x_strides.image + row * args_.x_strides.row + run.column * shape_.rows;
}

void BandPanel::fill(const ConvFunctions& steps, const ConvBandsFunctions& bands,
                     std::int64_t begin, std::int64_t end, float* tile, float* stage) const {
  const Conv2dShape& s = args_.shape;
  const std::int64_t first = begin / taps_;
  const std::int64_t channels = ceil_div(end, taps_) - first;
  ConvBandsCopyTask task{};
  task.step = s.stride_w;
  if (staged()) {
    const auto count = static_cast<std::int64_t>(pixels_.size());
    task.plane = padded_plane(count, vector_lanes_);
    steps.transpose({pixels_.data(), channels, stage, task.plane, count, first});
    task.x = stage;
  } else {
    task.plane = args_.x_strides.channel;
    task.x = static_cast<const float*>(args_.x) + first * task.plane;
    if (const auto next = upcoming()) {
      task.next = *next;
      task.next_lines = ceil_div(shape_.all() * vector_lanes_, 16);
    }
  }
  task.parts = parts_of_vector_;
  task.tile_stride = channel_vectors_ * vector_lanes_;
  const auto copy = [&](std::int64_t channel, std::int64_t count, std::int64_t vector,
                        std::int64_t vectors) {
    ConvBandsCopyTask part = task;
    part.x += channel * task.plane;
    part.channels = count;
    part.pieces = pieces_.data() + vector * parts_of_vector_;
    part.vectors = vectors;
    part.tile = tile + (channel * channel_vectors_ + vector) * vector_lanes_;
    bands.copy(part);
  };
  // Of a channel that the block holds in part, the tile rows that its taps see.
  const auto copy_taps = [&](std::int64_t channel, std::int64_t tap_begin, std::int64_t tap_end) {
    for (std::int64_t x = 0; x < s.kernel_w; ++x) {
      std::int64_t low = rows_.count();
      std::int64_t high = 0;
      for (std::int64_t tap = x; tap < tap_end; tap += s.kernel_w) {
        if (tap < tap_begin) continue;
        const std::int64_t row = rows_.first_of(tap / s.kernel_w);
        low = std::min(low, row);
        high = std::max(high, row + shape_.rows);
      }
      if (low < high) {
        copy(channel, 1, (x * rows_.count() + low) * shape_.vectors, (high - low) * shape_.vectors);
      }
    }
  };
  std::int64_t channel = 0;
  if (begin % taps_ != 0 || end < (first + 1) * taps_) {
    copy_taps(0, begin % taps_, std::min(end - first * taps_, taps_));
    channel = 1;
  }
  const std::int64_t whole = end / taps_ - first;
  if (whole > channel) copy(channel, whole - channel, 0, channel_vectors_);
  channel = std::max(channel, whole);
  if (channel < channels) copy_taps(channel, 0, end - (first + channel) * taps_);
}

void BandPanel::find_places(std::int64_t begin, std::int64_t end, std::uint16_t* places) const {
  const Conv2dShape& s = args_.shape;
  std::int64_t channel = 0;
  std::int64_t y = begin % taps_ / s.kernel_w;
  std::int64_t x = begin % s.kernel_w;
  for (std::int64_t k = begin; k < end; ++k) {
    const std::int64_t row = x * rows_.count() + rows_.first_of(y);
    *places++ = static_cast<std::uint16_t>(channel + row * shape_.vectors);
    if (++x < s.kernel_w) continue;
    x = 0;
    if (++y < s.kernel_h) continue;
    y = 0;
    channel += channel_vectors_;
  }
}

}  // namespace gossamer::cpu
