// SPDX-License-Identifier: BSD-3-Clause
// The steps of a convolution beside the sums: pixels of rows gathered into vectors of lanes,
// channels-last pixels transposed, sums stored as planes. Included inside an anonymous namespace
// behind vector.inl, epilogue.inl and transpose.inl, and behind three functions of the instruction
// set: transpose_block (kLanes × kLanes), add_pixels and add_second_pixels, which put the lanes of
// a mask from x[0], x[1], … or x[0], x[2], … into a vector and touch no other element.

/// An address that may lie before the array: only elements inside are read.
template <typename T>
inline const T* address(const T* x, std::int64_t offset) {
  const auto bytes = static_cast<std::uintptr_t>(offset) * sizeof(T);
  return reinterpret_cast<const T*>(reinterpret_cast<std::uintptr_t>(x) + bytes);
}

/// Whole vectors in their place, because most stores of a shifted row would cross a line of the
/// cache: pixels of two rows meet in a register instead. One vector of all planes after the other:
/// few instructions a plane keep many of their lines on the way, and the next panel's lines are
/// asked for, which no prefetcher guesses across hundreds of planes.
template <typename Element, typename Add>
inline void copy_planes(const gossamer::cpu::ConvCopyTask& task, const Add& add_lanes) {
  using T = typename Element::Type;
  const auto* x = static_cast<const T*>(task.x);
  const std::int64_t plane = task.plane;
  const std::int64_t stride = task.tile_stride;
  const std::int64_t channels = task.channels;
  const std::int64_t ahead = task.vectors * kLanes * task.step;
  const gossamer::cpu::ConvPiece* piece = task.pieces;
  for (std::int64_t v = 0; v < task.vectors; ++v) {
    float* to = task.tile + v * kLanes;
    const gossamer::cpu::ConvPiece* end = task.pieces + task.ends[v];
    if (end - piece == 1) {
      const T* from = address(x, piece->offset);
      const std::uint32_t lanes = piece->lanes;
      for (std::int64_t c = 0; c < channels; ++c) {
        store(to + c * stride, add_lanes(zero(), address(from, c * plane), lanes));
        __builtin_prefetch(address(from, c * plane + ahead));
      }
    } else if (end - piece == 2) {
      const T* from = address(x, piece->offset);
      const T* other = address(x, piece[1].offset);
      const std::uint32_t lanes = piece->lanes;
      const std::uint32_t other_lanes = piece[1].lanes;
      for (std::int64_t c = 0; c < channels; ++c) {
        const Vector pixels = add_lanes(zero(), address(from, c * plane), lanes);
        store(to + c * stride, add_lanes(pixels, address(other, c * plane), other_lanes));
        __builtin_prefetch(address(other, c * plane + ahead));
      }
    } else {
      for (std::int64_t c = 0; c < channels; ++c) {
        Vector pixels = zero();
        for (const auto* p = piece; p != end; ++p) {
          pixels = add_lanes(pixels, address(x, p->offset + c * plane), p->lanes);
        }
        store(to + c * stride, pixels);
      }
    }
    piece = end;
  }
}

template <typename Element>
void copy_pixels(const gossamer::cpu::ConvCopyTask& task) {
  using T = typename Element::Type;
  if (task.step == 1) {
    copy_planes<Element>(task, add_pixels<Element>);
  } else if (task.step == 2) {
    copy_planes<Element>(task, add_second_pixels<Element>);
  } else {
    copy_planes<Element>(task, [&](Vector pixels, const T* from, std::uint32_t lanes) {
      for (; lanes != 0; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        pixels[lane] = first_lane(Element::load_first(address(from, lane * task.step), 1));
      }
      return pixels;
    });
  }
}

template <typename Element>
void transpose_pixels(const gossamer::cpu::ConvTransposeTask& task) {
  using T = typename Element::Type;
  for (std::int64_t t = 0; t < task.lanes; t += kLanes) {
    for (std::int64_t c = 0; c < task.channels; c += kLanes) {
      const std::int64_t channels = task.channels - c < kLanes ? task.channels - c : kLanes;
      Vector r[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        const T* pixel = static_cast<const T*>(task.pixels[t + j]);
        if (pixel != nullptr) pixel += task.first;
        r[j] = pixel == nullptr     ? zero()
               : channels == kLanes ? Element::load(pixel + c)
                                    : Element::load_first(pixel + c, channels);
      }
      transpose_block(r);
      float* to = task.tile + c * task.tile_stride + t;
      for (int j = 0; j < channels; ++j) store(to + j * task.tile_stride, r[j]);
    }
  }
}

template <typename Element>
void store_run(const gossamer::cpu::ConvStoreTask& task) {
  using T = typename Element::Type;
  const auto* bias = static_cast<const T*>(task.bias);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const Vector add_to_all = bias == nullptr ? zero() : Element::broadcast(bias + row);
    const float* sums = task.sums + row * task.lanes;
    const T* residual = task.residual == nullptr
                            ? nullptr
                            : static_cast<const T*>(task.residual) + row * task.y_plane;
    T* y = static_cast<T*>(task.y) + row * task.y_plane;
    for (std::int64_t i = 0; i < task.length; i += kLanes) {
      const std::int64_t left = task.length - i;
      if (left >= kLanes) {
        Vector v = add(load(sums + i), add_to_all);
        if (residual != nullptr) v = add(v, Element::load(residual + i));
        Element::store(y + i, activate(v, task.activation));
      } else {
        Vector v = add(Float32::load_first(sums + i, left), add_to_all);
        if (residual != nullptr) v = add(v, Element::load_first(residual + i, left));
        Element::store_first(y + i, activate(v, task.activation), left);
      }
    }
  }
}

template <typename Element>
constexpr gossamer::cpu::ConvFunctions conv_functions_for() {
  return {kLanes, copy_pixels<Element>, transpose_pixels<Element>, store_run<Element>};
}
