// SPDX-License-Identifier: BSD-3-Clause
// 16×16 transposes of floats and the two steps of K-blocked kernels that are made of them. Included
// inside an anonymous namespace behind vector.inl and epilogue.inl.

inline void transpose_16x16(__m512 (&r)[16]) {
  __m512 a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  // b[4i + j] holds, in its 128-bit lane l, column 4l + j of rows 4i to 4i + 3.
  __m512 b[16];
  const auto pairs = [](__m512 v) { return _mm512_castps_pd(v); };
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(a[i]), pairs(a[i + 2])));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(a[i]), pairs(a[i + 2])));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(a[i + 1]), pairs(a[i + 3])));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(a[i + 1]), pairs(a[i + 3])));
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    r[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

template <typename Element>
bool pack_tile(const gossamer::cpu::KcsrPackTask& task) {
  for (std::int64_t t = 0; t < task.lanes; t += 16) {
    const std::int64_t tokens = task.tokens - t;
    const auto* x = static_cast<const typename Element::Type*>(task.x) + t * task.x_stride;
    for (std::int64_t k = 0; k < task.columns; k += 16) {
      const std::int64_t columns = task.columns - k;
      __m512 r[16];
      if (tokens >= 16 && columns >= 16) {
        for (int j = 0; j < 16; ++j) r[j] = Element::load(x + j * task.x_stride + k);
      } else {
        for (int j = 0; j < 16; ++j) {
          r[j] = j < tokens ? Element::load_first(x + j * task.x_stride + k, columns) : zero();
        }
      }
      transpose_16x16(r);
      for (int j = 0; j < 16; ++j) store(task.tile + (k + j) * task.lanes + t, r[j]);
    }
  }
  return true;
}

/// Some rows of 16 tokens are transposed to a buffer in L1, to which `finish_rows(buffer, stride,
/// row, rows, token)` is then applied.
template <typename F>
inline void store_transposed(const gossamer::cpu::KcsrStoreTask& task, const F& finish_rows) {
  constexpr std::int64_t kRows = 128;
  alignas(64) float buffer[16 * kRows];
  for (std::int64_t row = 0; row < task.out.rows; row += kRows) {
    const std::int64_t rows = task.out.rows - row < kRows ? task.out.rows - row : kRows;
    for (std::int64_t t = 0; t < task.out.tokens; t += 16) {
      for (std::int64_t i = 0; i < rows; i += 16) {
        __m512 r[16];
        for (int j = 0; j < 16; ++j) {
          r[j] = i + j < rows ? load(task.sums + (row + i + j) * task.lanes + t) : zero();
        }
        transpose_16x16(r);
        for (int j = 0; j < 16; ++j) store(buffer + j * kRows + i, r[j]);
      }
      finish_rows(buffer, kRows, row, rows, t);
    }
  }
}

template <typename Element>
void store_panel(const gossamer::cpu::KcsrStoreTask& task) {
  store_transposed(task, [&](float* sums, std::int64_t stride, std::int64_t row, std::int64_t rows,
                             std::int64_t token) {
    finish<Element>(part_of<Element>(task.out, sums, stride, row, rows, token, 16));
  });
}
