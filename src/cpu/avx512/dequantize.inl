// SPDX-License-Identifier: BSD-3-Clause
// Integer sums to floats. Included inside an anonymous namespace behind vector.inl.

inline void dequantize(const gossamer::cpu::DequantizeTask& task) {
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    float* sums = task.sums + t * task.sums_stride;
    const Vector x_scale = repeat(task.x_scale[t]);
    for (std::int64_t row = 0; row < task.rows; row += kLanes) {
      const std::int64_t rows = task.rows - row;
      const __mmask16 live = first_lanes(rows);
      __m512i sum = _mm512_maskz_loadu_epi32(live, sums + row);
      if (task.corrections != nullptr) {
        sum = _mm512_sub_epi32(sum, _mm512_maskz_loadu_epi32(live, task.corrections + row));
      }
      Vector result = times(_mm512_cvtepi32_ps(sum), x_scale);
      if (task.weight_scale != nullptr) {
        result = times(result, Float32::load_first(task.weight_scale + row, rows));
      }
      Float32::store_first(sums + row, result, rows);
    }
  }
}
