// SPDX-License-Identifier: BSD-3-Clause
// 8×8 transposes of floats and the two steps of K-blocked kernels that are made of them. Included
// inside an anonymous namespace by translation units that may use AVX2.

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

/// A mask whose first `count` lanes are on; 8 or more: all.
inline __m256i first_lanes(std::int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int limit = count > 8 ? 8 : static_cast<int>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lane);
}

inline void pack_tile(const gossamer::cpu::KcsrPackTask& task) {
  for (std::int64_t t = 0; t < task.lanes; t += 8) {
    const std::int64_t tokens = task.tokens - t;
    const float* x = task.x + t * task.x_stride;
    for (std::int64_t k = 0; k < task.columns; k += 8) {
      const std::int64_t columns = task.columns - k;
      __m256 r[8];
      if (tokens >= 8 && columns >= 8) {
        for (int j = 0; j < 8; ++j) r[j] = _mm256_loadu_ps(x + j * task.x_stride + k);
      } else {
        const __m256i mask = first_lanes(columns);
        for (int j = 0; j < 8; ++j) {
          r[j] = j < tokens ? _mm256_maskload_ps(x + j * task.x_stride + k, mask)
                            : _mm256_setzero_ps();
        }
      }
      transpose_8x8(r);
      for (int j = 0; j < 8; ++j) _mm256_store_ps(task.tile + (k + j) * task.lanes + t, r[j]);
    }
  }
}

inline void store_panel(const gossamer::cpu::KcsrStoreTask& task) {
  const __m256 zero = _mm256_setzero_ps();
  for (std::int64_t row = 0; row < task.rows; row += 8) {
    const std::int64_t rows = task.rows - row;
    const __m256i mask = first_lanes(rows);
    for (std::int64_t t = 0; t < task.tokens; t += 8) {
      const std::int64_t tokens = task.tokens - t < 8 ? task.tokens - t : 8;
      __m256 r[8];
      for (int j = 0; j < 8; ++j) {
        r[j] = j < rows ? _mm256_load_ps(task.sums + (row + j) * task.lanes + t) : zero;
      }
      transpose_8x8(r);
      for (int j = 0; j < tokens; ++j) {
        if (task.residual != nullptr) {
          const float* from = task.residual + (t + j) * task.residual_stride + row;
          r[j] = _mm256_add_ps(r[j], _mm256_maskload_ps(from, mask));
        }
        // max returns its second operand where one is NaN, so NaN passes through.
        if (task.relu) r[j] = _mm256_max_ps(zero, r[j]);
        float* to = task.y + (t + j) * task.y_stride + row;
        if (rows >= 8) {
          _mm256_storeu_ps(to, r[j]);
        } else {
          _mm256_maskstore_ps(to, mask, r[j]);
        }
      }
    }
  }
}
