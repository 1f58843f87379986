// SPDX-License-Identifier: BSD-3-Clause
// The steps of a convolution over bands (conv_bands_task.h). Included inside an anonymous namespace
// behind conv2d.inl.

/// Some channels at a time: few instructions a vector are spent on where it lies, and what one
/// horizontal tap has read is still in L1 for the next, though planes may share its sets.
constexpr std::int64_t kPlanesAtOnce = 8;

/// All vectors have the same number of pieces (0: task.parts), so that no branch depends on where
/// rows end.
template <int kParts, typename Add>
inline void copy_planes_of_band(const gossamer::cpu::ConvBandsCopyTask& task, const float* x,
                                float* to, std::int64_t channels, const Add& add_lanes) {
  const std::int64_t plane = task.plane;
  const std::int64_t stride = task.tile_stride;
  const std::int64_t parts = kParts == 0 ? task.parts : kParts;
  const gossamer::cpu::ConvPiece* piece = task.pieces;
  for (std::int64_t v = 0; v < task.vectors; ++v, to += kLanes, piece += parts) {
    for (std::int64_t c = 0; c < channels; ++c) {
      Vector pixels = zero();
      for (std::int64_t i = 0; i < parts; ++i) {
        pixels = add_lanes(pixels, address(x, piece[i].offset + c * plane), piece[i].lanes);
      }
      store(to + c * stride, pixels);
    }
  }
}

template <typename Add>
inline void copy_bands_by(const gossamer::cpu::ConvBandsCopyTask& task, const Add& add_lanes) {
  for (std::int64_t first = 0; first < task.channels; first += kPlanesAtOnce) {
    const std::int64_t left = task.channels - first;
    const std::int64_t channels = left < kPlanesAtOnce ? left : kPlanesAtOnce;
    const float* x = address(task.x, first * task.plane);
    float* to = task.tile + first * task.tile_stride;
    // Into L2: no prefetcher guesses the rows of the next bands across hundreds of planes.
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t line = 0; line < task.next_lines; ++line) {
        __builtin_prefetch(address(x, c * task.plane + task.next + line * 16), 0, 2);
      }
    }
    if (task.parts == 1) {
      copy_planes_of_band<1>(task, x, to, channels, add_lanes);
    } else if (task.parts == 2) {
      copy_planes_of_band<2>(task, x, to, channels, add_lanes);
    } else {
      copy_planes_of_band<0>(task, x, to, channels, add_lanes);
    }
  }
}

inline void copy_bands(const gossamer::cpu::ConvBandsCopyTask& task) {
  if (task.step == 1) {
    copy_bands_by(task, add_pixels<Float32>);
  } else if (task.step == 2) {
    copy_bands_by(task, add_second_pixels<Float32>);
  } else {
    copy_bands_by(task, [&](Vector pixels, const float* from, std::uint32_t lanes) {
      for (; lanes != 0; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        pixels[lane] = *address(from, lane * task.step);
      }
      return pixels;
    });
  }
}

/// How many kept values a panel of NV vectors takes at once: fewer than eight chains of
/// multiply-adds do not cover their latency.
constexpr int band_ways(int vectors) { return vectors == 1 ? 4 : vectors < 5 ? 2 : 1; }

template <int NV>
inline void add_band(const float* value, const float* from, Vector (&sum)[NV]) {
  const Vector v = broadcast(value);
#pragma GCC unroll 16
  for (int n = 0; n < NV; ++n) sum[n] = multiply_add(v, load(from + n * kLanes), sum[n]);
}

template <int NV>
void add_bands(const gossamer::cpu::ConvBandsAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  constexpr int kWays = band_ways(NV);
  const std::uint16_t* place = task.places + task.begins[0];
  for (std::int64_t row = 0; row < task.rows; ++row) {
    float* sums = task.sums + row * kPanel;
    Vector sum[NV];
#pragma GCC unroll 16
    for (int n = 0; n < NV; ++n) sum[n] = task.first ? zero() : load(sums + n * kLanes);
    const float* value = task.values + task.begins[row];
    const float* end = task.values + task.begins[row + 1];
    if constexpr (kWays > 1) {
      Vector more[kWays - 1][NV];
#pragma GCC unroll 4
      for (int w = 0; w < kWays - 1; ++w) {
        for (int n = 0; n < NV; ++n) more[w][n] = zero();
      }
      for (; end - value >= kWays; value += kWays, place += kWays) {
        add_band<NV>(value, task.tile + place[0] * kLanes, sum);
#pragma GCC unroll 4
        for (int w = 1; w < kWays; ++w) {
          add_band<NV>(value + w, task.tile + place[w] * kLanes, more[w - 1]);
        }
      }
#pragma GCC unroll 4
      for (int w = 0; w < kWays - 1; ++w) {
        for (int n = 0; n < NV; ++n) sum[n] = add(sum[n], more[w][n]);
      }
    }
    for (; value != end; ++value, ++place) add_band<NV>(value, task.tile + *place * kLanes, sum);
#pragma GCC unroll 16
    for (int n = 0; n < NV; ++n) store(sums + n * kLanes, sum[n]);
  }
}

template <typename Activate>
inline void store_bands_by(const gossamer::cpu::ConvBandsStoreTask& task,
                           const Activate& activated) {
  const std::int64_t whole = task.length / kLanes * kLanes;
  const std::int64_t left = task.length - whole;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const Vector bias = task.bias == nullptr ? zero() : broadcast(task.bias + row);
    const float* sums = task.sums + row * task.sums_stride;
    std::int64_t at = row * task.y_plane;
    for (std::int64_t b = 0; b < task.band_rows; ++b) {
      for (std::int64_t i = 0; i < whole; i += kLanes) {
        Vector v = add(load(sums + i), bias);
        if (task.residual != nullptr) v = add(v, load(task.residual + at + i));
        store(task.y + at + i, activated(v));
      }
      if (left != 0) {
        Vector v = add(Float32::load_first(sums + whole, left), bias);
        if (task.residual != nullptr) {
          v = add(v, Float32::load_first(task.residual + at + whole, left));
        }
        Float32::store_first(task.y + at + whole, activated(v), left);
      }
      sums += task.band_stride;
      at += task.y_row;
    }
  }
}

inline void store_bands(const gossamer::cpu::ConvBandsStoreTask& task) {
  using gossamer::Activation;
  if (task.activation == Activation::kNone) {
    store_bands_by(task, [](Vector v) { return v; });
  } else if (task.activation == Activation::kRelu) {
    store_bands_by(task, [](Vector v) { return activate(v, Activation::kRelu); });
  } else {
    store_bands_by(task, [&](Vector v) { return activate(v, task.activation); });
  }
}
