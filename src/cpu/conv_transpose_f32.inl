// SPDX-License-Identifier: BSD-3-Clause
// Channels-last pixels transposed into a tile by blocks of 8×8, after transpose_f32.inl, for
// translation units that may use AVX2.

void transpose_pixels(const gossamer::cpu::ConvTransposeTask& task) {
  for (std::int64_t t = 0; t < task.lanes; t += 8) {
    const float* const* pixels = task.pixels + t;
    for (std::int64_t c = 0; c < task.channels; c += 8) {
      const std::int64_t channels = task.channels - c < 8 ? task.channels - c : 8;
      const __m256i mask = first_lanes(channels);
      __m256 r[8];
      for (int j = 0; j < 8; ++j) {
        if (pixels[j] == nullptr) {
          r[j] = _mm256_setzero_ps();
        } else {
          r[j] = channels == 8 ? _mm256_loadu_ps(pixels[j] + c)
                               : _mm256_maskload_ps(pixels[j] + c, mask);
        }
      }
      transpose_8x8(r);
      float* to = task.tile + c * task.tile_stride + t;
      for (int j = 0; j < channels; ++j) _mm256_store_ps(to + j * task.tile_stride, r[j]);
    }
  }
}
