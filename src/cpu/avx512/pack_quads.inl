// SPDX-License-Identifier: BSD-3-Clause
// X to tiles of fours, 32 bits hold four neighbouring inputs of 8 bits, and sums of their products
// to Y. Included inside an anonymous namespace behind epilogue.inl, dequantize.inl and
// transpose.inl.

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

/// What follows the sums of one vector of rows of one token, from `row` on; all of them in float32.
struct QuadFinish {
  const gossamer::cpu::KcsrStoreTask& task;
  const float* bias;
  const float* residual;  ///< of the token

  /// `count` rows, at most a vector. The operations and their order are those of dequantize and
  /// finish, so that every kernel gives the same bits.
  Vector finished(__m512i sums, float x_scale, std::int64_t row, std::int64_t count) const {
    if (task.corrections != nullptr) {
      const __m512i correction =
          _mm512_maskz_loadu_epi32(first_lanes(count), task.corrections + row);
      sums = _mm512_sub_epi32(sums, correction);
    }
    Vector v = times(_mm512_cvtepi32_ps(sums), repeat(x_scale));
    if (task.weight_scale != nullptr) {
      v = times(v, Float32::load_first(task.weight_scale + row, count));
    }
    if (bias != nullptr) v = add(v, Float32::load_first(bias + row, count));
    if (residual != nullptr) v = add(v, Float32::load_first(residual + row, count));
    return activate(v, task.out.activation);
  }
};

/// One pass over sums in L1 that are turned already: dequantize and finish in one.
void store_quads(const gossamer::cpu::KcsrStoreTask& task) {
  const gossamer::cpu::FinishTask& out = task.out;
  store_transposed(task, [&](const float* sums, std::int64_t stride, std::int64_t first,
                             std::int64_t rows, std::int64_t token) {
    const std::int64_t tokens = out.tokens - token < 16 ? out.tokens - token : 16;
    for (std::int64_t t = token; t < token + tokens; ++t, sums += stride) {
      const auto* residual = static_cast<const float*>(out.residual);
      if (residual != nullptr) residual += t * out.residual_stride;
      const QuadFinish finish_rows{task, static_cast<const float*>(out.bias), residual};
      for (std::int64_t i = 0; i < rows; i += kLanes) {
        const std::int64_t row = first + i;
        const std::int64_t count = rows - i < kLanes ? rows - i : kLanes;
        const Vector v =
            finish_rows.finished(_mm512_loadu_si512(sums + i), task.x_scale[t], row, count);
        const std::int64_t at = t * out.y_stride + row;
        if (out.y_inverse > 0.0f) {
          store_int8(static_cast<std::int8_t*>(out.y) + at, v, out.y_inverse, count);
        } else if (count == kLanes) {
          store(static_cast<float*>(out.y) + at, v);
        } else {
          Float32::store_first(static_cast<float*>(out.y) + at, v, count);
        }
      }
    }
  });
}
