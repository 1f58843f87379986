// SPDX-License-Identifier: BSD-3-Clause
// 8×8 transposes of floats and the two steps of K-blocked kernels that are made of them. Included
// inside an anonymous namespace behind vector.inl and epilogue.inl.

inline void transpose_8x8(__m256 (&r)[8]) {
  __m256 a[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m256 b[8];
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
    b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
    b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
    b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

template <typename Element>
bool pack_tile(const gossamer::cpu::KcsrPackTask& task) {
  for (std::int64_t t = 0; t < task.lanes; t += 8) {
    const std::int64_t tokens = task.tokens - t;
    const auto* x = static_cast<const typename Element::Type*>(task.x) + t * task.x_stride;
    for (std::int64_t k = 0; k < task.columns; k += 8) {
      const std::int64_t columns = task.columns - k;
      __m256 r[8];
      if (tokens >= 8 && columns >= 8) {
        for (int j = 0; j < 8; ++j) r[j] = Element::load(x + j * task.x_stride + k);
      } else {
        for (int j = 0; j < 8; ++j) {
          r[j] = j < tokens ? Element::load_first(x + j * task.x_stride + k, columns) : zero();
        }
      }
      transpose_8x8(r);
      for (int j = 0; j < 8; ++j) _mm256_store_ps(task.tile + (k + j) * task.lanes + t, r[j]);
    }
  }
  return true;
}

/// Some rows of 8 tokens are transposed to a buffer in L1, to which `finish_rows(buffer, stride,
/// row, rows, token)` is then applied.
template <typename F>
inline void store_transposed(const gossamer::cpu::KcsrStoreTask& task, const F& finish_rows) {
  constexpr std::int64_t kRows = 128;
  alignas(64) float buffer[8 * kRows];
  for (std::int64_t row = 0; row < task.out.rows; row += kRows) {
    const std::int64_t rows = task.out.rows - row < kRows ? task.out.rows - row : kRows;
    for (std::int64_t t = 0; t < task.out.tokens; t += 8) {
      for (std::int64_t i = 0; i < rows; i += 8) {
        __m256 r[8];
        for (int j = 0; j < 8; ++j) {
          r[j] = i + j < rows ? load(task.sums + (row + i + j) * task.lanes + t) : zero();
        }
        transpose_8x8(r);
        for (int j = 0; j < 8; ++j) store(buffer + j * kRows + i, r[j]);
      }
      finish_rows(buffer, kRows, row, rows, t);
    }
  }
}

template <typename Element>
void store_panel(const gossamer::cpu::KcsrStoreTask& task) {
  store_transposed(task, [&](float* sums, std::int64_t stride, std::int64_t row, std::int64_t rows,
                             std::int64_t token) {
    finish<Element>(part_of<Element>(task.out, sums, stride, row, rows, token, 8));
  });
}
