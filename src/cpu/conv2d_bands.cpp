// SPDX-License-Identifier: BSD-3-Clause
// A convolution as K-blocked CSR over bands of output rows (conv_bands_task.h).
//
//   for each block of filters (their sums stay in L2), each panel of R rows × V vectors of columns:
//     for each block of KC inputs (a few channels, all their taps): copy the rows that the bands
//       see, once for every horizontal tap, into a tile (L1); add every kept value of the filters
//     store the sums to Y, with residual and activation
//
// A 3×3 filter takes each pixel three times (and the two rows at the edge of a band) where panels
// of single rows take it nine times, so that more inputs fit L1 and less is copied.
#include "cpu/conv2d_bands.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/layouts.h"
#include "cpu/conv_bands.h"
#include "cpu/conv_driver.h"
#include "cpu/kcsr_source.h"
#include "cpu/scratch.h"
#include "cpu/spmm_driver.h"

namespace gossamer::cpu {
namespace {

using detail::ceil_div;

constexpr std::int64_t kMaxPlaces = 65536;
constexpr std::int64_t kLineFloats = 16;
/// Filters whose sums of the last block are stored at once.
constexpr std::int64_t kStoredRows = 8;
constexpr std::int64_t kTransposedRows = 128;

struct Kernels {
  const KcsrFunctions& sums;
  const ConvFunctions& steps;
  const ConvBandsFunctions& bands;
};

std::int64_t taps_of(const Conv2dShape& s) { return s.kernel_h * s.kernel_w; }

/// Vectors of a tile of `block` inputs, of which each channel and horizontal tap has `rows`.
std::int64_t tile_vectors(const Conv2dShape& s, std::int64_t block, std::int64_t rows,
                          std::int64_t vectors) {
  return BandPanel::channels_of(block, taps_of(s)) * s.kernel_w * rows * vectors;
}

/// Cycles, measured on an Emerald Rapids: of a vector that is added, copied or stored, of a kept
/// value whatever the panel, and of the end of a row in a block.
constexpr double kAddCycles = 0.55;
constexpr double kValueCycles = 1.1;
constexpr double kEndCycles = 25.0;
constexpr double kSumCycles = 2.5;
constexpr double kCopyCycles = 4.0;
constexpr double kStoreCycles = 5.0;
constexpr double kPlaceCycles = 1.0;

/// How much slower multiply-adds are whose tile and sums compete for L1: `share` for a tile that is
/// much larger than `fits` bytes.
double slowed_by_l2(double tile_vectors, std::int64_t lanes, double fits, double share) {
  const double tile = tile_vectors * static_cast<double>(lanes) * 4.0;
  return tile > fits ? 1.0 + share * (1.0 - fits / tile) : 1.0;
}

/// Cycles of one panel: what grows with the filters, and the copies.
struct PanelCycles {
  double product;
  double copied;
  double all() const { return product + copied; }
};

/// One panel of `vectors`, whose tiles take `copied` vectors in all.
PanelCycles panel_cycles(const KcsrSource& source, double kept, double vectors, double copied,
                         double slowed) {
  const auto out = static_cast<double>(source.out);
  return {kept * (vectors * kAddCycles * slowed + kValueCycles) +
              out * static_cast<double>(source.block_count) * (kSumCycles * vectors + kEndCycles) +
              out * vectors * kStoreCycles,
          copied * kCopyCycles};
}

/// Panels of R rows × V vectors of columns, whose tiles have `rows` for a channel and a tap.
PanelCycles band_cycles(const Conv2dArgs& args, const KcsrSource& source, std::int64_t rows,
                        BandShape shape, std::int64_t lanes) {
  const Conv2dShape& s = args.shape;
  const double tile =
      static_cast<double>(tile_vectors(s, std::min(source.block, source.in), rows, shape.vectors));
  const double copied = static_cast<double>(s.in_channels * s.kernel_w * rows * shape.vectors);
  return panel_cycles(source, static_cast<double>(args.weight.kept()),
                      static_cast<double>(shape.all()), copied,
                      slowed_by_l2(tile, lanes, 40e3, 0.5));
}

std::int64_t band_panels(const Conv2dShape& s, BandShape shape, std::int64_t lanes) {
  return ceil_div(BandPanel::columns(s, shape.rows), shape.vectors * lanes);
}

/// The same for panels of neighbouring pixels, whose vertical taps share no vector of the tile.
double pixel_cycles(const Conv2dArgs& args, const KcsrSource& source, std::int64_t lanes,
                    std::int64_t vectors) {
  const std::int64_t all = ceil_div(args.shape.pixels(), lanes);
  const std::int64_t width = std::min(all, vectors);
  const auto wide = static_cast<double>(width);
  return static_cast<double>(all) / wide *
         panel_cycles(source, static_cast<double>(args.weight.kept()), wide,
                      static_cast<double>(source.in * width),
                      slowed_by_l2(static_cast<double>(std::min(source.block, source.in) * width),
                                   lanes, 24e3, 1.0))
             .all();
}

/// places[i]: where kept value i of the weight finds its input in the tiles. Made once for all
/// threads.
void find_places(const Conv2dArgs& args, const KcsrSource& source, const BandPanel& panel,
                 std::uint16_t* places) {
  constexpr std::int64_t kWorthWaking = 65536;
  ParallelFor parallel = args.parallel;
  if (args.weight.kept() < kWorthWaking) parallel.run = nullptr;
  parallel_for(parallel, source.block_count, [&](std::int64_t first, std::int64_t last) {
    std::vector<std::uint16_t> of_input(static_cast<std::size_t>(source.block));
    for (std::int64_t k = first; k < last; ++k) {
      const std::int64_t begin = k * source.block;
      panel.find_places(begin, std::min(begin + source.block, source.in), of_input.data());
      for (std::int64_t i = source.blocks[k]; i < source.blocks[k + 1]; ++i) {
        places[i] = of_input[source.cols[i]];
      }
    }
  });
}

/// Filters [first, first + count), whose sums for one panel are ready, to Y.
void store(const Kernels& kernels, const Conv2dArgs& args, const BandPanel& panel, BandShape shape,
           const float* sums, std::int64_t first, std::int64_t count) {
  const std::int64_t band = shape.vectors * kernels.bands.vector_lanes;
  const std::int64_t stride = shape.rows * band;
  const ImageStrides& to = args.y_strides;
  const auto* bias = static_cast<const float*>(args.bias);
  const auto* residual = static_cast<const float*>(args.residual);
  auto* y = static_cast<float*>(args.y);
  if (bias != nullptr) bias += first;
  for (const BandPanel::Run& run : panel.runs()) {
    const std::int64_t at =
        run.image * to.image + first * to.channel + run.row * to.row + run.column * to.column;
    const float* from = residual == nullptr ? nullptr : residual + at;
    if (!to.channels_last()) {
      kernels.bands.store({sums + run.lane, stride, band, count, run.rows, run.length, bias, from,
                           y + at, to.channel, to.row, args.activation});
      continue;
    }
    for (std::int64_t r = 0; r < run.rows; ++r) {
      KcsrStoreTask task{};
      task.sums = sums + r * band + run.lane;
      task.lanes = stride;
      task.out = {nullptr,    0,
                  run.length, count,
                  bias,       from == nullptr ? nullptr : from + r * to.row,
                  to.column,  y + at + r * to.row,
                  to.column,  args.activation};
      kernels.sums.store(task);
    }
  }
}

void run_part(const Kernels& kernels, const Conv2dArgs& args, const KcsrSource& source,
              const std::uint16_t* places, const BandRows& band_rows, BandShape shape,
              const SpmmPart& part) {
  const std::int64_t lanes = kernels.bands.vector_lanes;
  const std::int64_t panel_floats = shape.all() * lanes;
  const std::int64_t block = std::min(source.block, source.in);
  const std::int64_t tile_floats =
      tile_vectors(args.shape, block, band_rows.count(), shape.vectors) * lanes;
  const std::int64_t most = std::max<std::int64_t>(kSumsFloats / panel_floats, 1);
  BandPanel panel(args, band_rows, shape, lanes);
  const std::int64_t stored_rows = args.y_strides.channels_last() ? kTransposedRows : kStoredRows;
  const std::int64_t stage_floats =
      ceil_div(panel.stage_floats(BandPanel::channels_of(block, taps_of(args.shape))),
               kLineFloats) *
      kLineFloats;
  for (std::int64_t row = part.row_begin; row < part.row_end; row += most) {
    const std::int64_t rows = std::min(part.row_end - row, most);
    // Transposing the sums of a channels-last result reads a vector beyond the last.
    float* tile = scratch(tile_floats + stage_floats + rows * panel_floats + lanes);
    float* stage = tile + tile_floats;
    float* sums = stage + stage_floats;
    for (std::int64_t column = part.token_begin; column < part.token_end;
         column += shape.vectors * lanes) {
      panel.move_to(column, part.token_end);
      for (std::int64_t k = 0; k < source.block_count; ++k) {
        const std::int64_t begin = k * source.block;
        panel.fill(kernels.steps, kernels.bands, begin, std::min(begin + source.block, source.in),
                   tile, stage);
        const bool last = k + 1 == source.block_count;
        // Y's lines arrive while the next filters are multiplied.
        const std::int64_t step = last ? stored_rows : rows;
        for (std::int64_t r = 0; r < rows; r += step) {
          const std::uint32_t* begins = source.segments + k * (source.out + 1) + row + r;
          const std::int64_t count = std::min(step, rows - r);
          float* to = sums + r * panel_floats;
          kernels.bands.add[shape.all() - 1](
              {reinterpret_cast<const float*>(source.values) + source.blocks[k],
               places + source.blocks[k], begins, count, tile, to, k == 0});
          if (last) store(kernels, args, panel, shape, to, row + r, count);
        }
      }
    }
  }
}

}  // namespace

std::optional<BandShape> find_bands(const Conv2dArgs& args, const ConvBandsFunctions& bands,
                                    int band_vectors, int pixel_vectors) {
  const Conv2dShape& s = args.shape;
  if (s.kernel_h == 1 || s.pixels() <= 0 || args.weight.out() == 0) return std::nullopt;
  const KcsrSource source(args.weight, 0);
  const std::int64_t lanes = bands.vector_lanes;
  std::optional<BandShape> best;
  double least = pixel_cycles(args, source, lanes, pixel_vectors);
  for (std::int64_t r = 1; r <= std::min<std::int64_t>(band_vectors, s.out_height()); ++r) {
    const std::int64_t rows = BandRows::count(s, r);
    const std::int64_t vectors = ceil_div(BandPanel::columns(s, r), lanes);
    for (std::int64_t v = 1; r * v <= band_vectors && v <= vectors; ++v) {
      if (bands.add[r * v - 1] == nullptr) continue;
      if (tile_vectors(s, std::min(source.block, source.in), rows, v) > kMaxPlaces) break;
      const double now = kPlaceCycles * static_cast<double>(args.weight.kept()) +
                         static_cast<double>(band_panels(s, {r, v}, lanes)) *
                             band_cycles(args, source, rows, {r, v}, lanes).all();
      if (now < least) {
        least = now;
        best = BandShape{r, v};
      }
    }
  }
  return best;
}

void run_conv2d_bands(const KcsrFunctions& sums, const ConvFunctions& steps,
                      const ConvBandsFunctions& bands, BandShape shape, const Conv2dArgs& args) {
  const KcsrSource source(args.weight, 0);
  const BandRows rows(args.shape, shape.rows);
  auto* places =
      reinterpret_cast<std::uint16_t*>(scratch(ceil_div(args.weight.kept(), 2), Purpose::kShared));
  find_places(args, source, BandPanel(args, rows, shape, bands.vector_lanes), places);
  const std::int64_t panels = band_panels(args.shape, shape, bands.vector_lanes);
  const PanelCycles cycles = band_cycles(args, source, rows.count(), shape, bands.vector_lanes);
  const SpmmSplit split =
      cut_panels(panels, conv_threads(args, panels * shape.all()), cycles.product, cycles.copied);
  run_conv_parts(args, split, BandPanel::columns(args.shape, shape.rows),
                 shape.vectors * bands.vector_lanes, source, [&](const SpmmPart& part) {
                   run_part({sums, steps, bands}, args, source, places, rows, shape, part);
                 });
}

}  // namespace gossamer::cpu
