// SPDX-License-Identifier: BSD-3-Clause
// X to tiles of pairs: 32 bits hold two neighbouring inputs of 16 bits. Included inside an
// anonymous namespace behind vector.inl and transpose.inl.

/// 16 pairs of a row of X, zeros behind the last of `columns` inputs.
inline __m512i load_sixteen_pairs(const std::uint16_t* x, std::int64_t columns) {
  if (columns >= 32) return _mm512_loadu_si512(x);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << columns) - 1u, x);
}

bool pack_pairs(const gossamer::cpu::KcsrPackTask& task) {
  const auto* x = static_cast<const std::uint16_t*>(task.x);
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t t = 0; t < task.lanes; t += 16) {
    const std::int64_t tokens = task.tokens - t;
    for (std::int64_t k = 0; 2 * k < task.columns; k += 16) {
      __m512 r[16];
      for (int j = 0; j < 16; ++j) {
        const __m512i pairs = j < tokens ? load_sixteen_pairs(x + (t + j) * task.x_stride + 2 * k,
                                                              task.columns - 2 * k)
                                         : _mm512_setzero_si512();
        largest = _mm512_max_epu16(largest, _mm512_and_si512(pairs, magnitude));
        r[j] = _mm512_castsi512_ps(pairs);
      }
      transpose_16x16(r);
      for (int j = 0; j < 16; ++j) store(task.tile + (k + j) * task.lanes + t, r[j]);
    }
  }
  // 0x7f80 and more are infinite or NaN.
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7f80)) == 0;
}
