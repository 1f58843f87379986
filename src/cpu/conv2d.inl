// SPDX-License-Identifier: BSD-3-Clause
// The steps of a convolution beside the sums: pixels of a row copied or every second one picked,
// channels-last pixels transposed, sums stored as planes. Included inside an anonymous namespace
// behind vector.inl, epilogue.inl and transpose.inl, and behind three functions of the instruction
// set: transpose_block (kLanes × kLanes), every_second<Element> (x[0], x[2], … without touching
// what lies behind the last) and copy_short<Element> (fewer than kLanes pixels).

/// The last vector overlaps the one before it, so that no store is masked.
template <typename Element, typename Load>
inline void copy_channels(const gossamer::cpu::ConvCopyTask& task, const Load& load) {
  const auto* x = static_cast<const typename Element::Type*>(task.x);
  const std::int64_t last = task.length - kLanes;
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const auto* from = x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    for (std::int64_t i = 0; i < last; i += kLanes) store(to + i, load(from + i * task.step));
    store(to + last, load(from + last * task.step));
  }
}

template <typename Element>
void copy_run(const gossamer::cpu::ConvCopyTask& task) {
  using T = typename Element::Type;
  if (task.step == 1 && task.length >= kLanes) {
    copy_channels<Element>(task, [](const T* x) { return Element::load(x); });
    return;
  }
  if (task.step == 2 && task.length >= kLanes) {
    copy_channels<Element>(task, [](const T* x) { return every_second<Element>(x); });
    return;
  }
  const auto* x = static_cast<const T*>(task.x);
  for (std::int64_t c = 0; c < task.channels; ++c) {
    const T* from = x + c * task.plane;
    float* to = task.tile + c * task.tile_stride;
    if (task.step == 1) {
      copy_short<Element>(from, to, task.length);
      continue;
    }
    for (std::int64_t i = 0; i < task.length; ++i) {
      to[i] = first_lane(Element::load_first(from + i * task.step, 1));
    }
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
  return {copy_run<Element>, transpose_pixels<Element>, store_run<Element>};
}
