// SPDX-License-Identifier: BSD-3-Clause
// X to tiles of fours: 32 bits hold four neighbouring inputs of 8 bits. Included inside an
// anonymous namespace behind transpose.inl.

/// 16 fours of a row of X, zeros behind the last of `columns` inputs, all with the bits `flip`
/// turned: 0x80 makes them unsigned by adding 128.
template <int flip>
inline Vector load_sixteen_quads(const std::int8_t* x, std::int64_t columns) {
  const __mmask64 live =
      columns >= 64 ? ~__mmask64{0} : (__mmask64{1} << static_cast<unsigned>(columns)) - 1u;
  const __m512i inputs = _mm512_maskz_loadu_epi8(live, x);
  return _mm512_castsi512_ps(_mm512_xor_si512(inputs, _mm512_set1_epi8(static_cast<char>(flip))));
}

template <int flip>
bool pack_quads(const gossamer::cpu::KcsrPackTask& task) {
  const auto* x = static_cast<const std::int8_t*>(task.x);
  for (std::int64_t t = 0; t < task.lanes; t += 16) {
    const std::int64_t tokens = task.tokens - t;
    for (std::int64_t k = 0; 4 * k < task.columns; k += 16) {
      __m512 r[16];
      for (int j = 0; j < 16; ++j) {
        r[j] = j < tokens ? load_sixteen_quads<flip>(x + (t + j) * task.x_stride + 4 * k,
                                                     task.columns - 4 * k)
                          : zero();
      }
      transpose_16x16(r);
      for (int j = 0; j < 16; ++j) store(task.tile + (k + j) * task.lanes + t, r[j]);
    }
  }
  return true;
}
