// SPDX-License-Identifier: BSD-3-Clause
// The loop nest of *_linear_nm24_f32, included by each instruction-set folder inside an anonymous
// namespace behind vector.inl and epilogue.inl, after it has defined `Word`, `permute` and
// kVectorsPerWord.
//
// A 32-bit word of metadata holds 16 positions of 2 bits: 4 column groups of a row pair. Shifted
// right by 0, 2, 4, … in the lanes of a vector it is the control of an in-lane permute that picks,
// out of 4 inputs, the 2 that each row of the pair keeps. So the inputs move and the weights stay
// packed: no expansion, no gather.

/// P row pairs × T tokens; every accumulator lane holds one (row of the pair, slot) for one group
/// of each step.
template <int P, int T>
inline void linear_block(const gossamer::cpu::Nm24Task& task, std::int64_t pair) {
  // Two chains per accumulator where there are few, so that the multiply-adds' latency is hidden.
  constexpr int kChains = P * T <= 4 ? 2 : 1;
  Vector sum[P][T][kChains];
  for (int p = 0; p < P; ++p) {
    for (int t = 0; t < T; ++t) {
      for (int c = 0; c < kChains; ++c) sum[p][t][c] = zero();
    }
  }

  const float* values = task.values + pair * task.values_stride;
  const std::uint8_t* meta = task.meta + pair * task.meta_stride;
  const float* x = task.x;
  constexpr std::int64_t kGroupsPerWord = 4;
  for (std::int64_t group = 0; group < task.groups; group += kGroupsPerWord * kWordsPerStep) {
#pragma GCC unroll 2
    for (int w = 0; w < kWordsPerStep; ++w) {
      const std::int64_t first = group + w * kGroupsPerWord;
      Word word[P];
      for (int p = 0; p < P; ++p) word[p] = load_word(meta + p * task.meta_stride + first);
#pragma GCC unroll 2
      for (int v = 0; v < kVectorsPerWord; ++v) {
        const std::int64_t column = 4 * first + v * kLanes;
        const int chain = (w * kVectorsPerWord + v) % kChains;
        Control control[P];
        Vector weight[P];
        for (int p = 0; p < P; ++p) {
          control[p] = select_control(word[p], v);
          weight[p] = load(values + p * task.values_stride + column);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const Vector input = load(x + t * task.x_stride + column);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) {
            sum[p][t][chain] =
                multiply_add(permute(input, control[p]), weight[p], sum[p][t][chain]);
          }
        }
      }
    }
  }

  for (int p = 0; p < P; ++p) {
    const std::int64_t row = 2 * (pair + p);
    for (int t = 0; t < T; ++t) {
      Vector total = sum[p][t][0];
      if constexpr (kChains == 2) total = add(total, sum[p][t][1]);
      float rows[2];
      reduce_pair(total, rows);
      for (int r = 0; r < 2 && row + r < task.out; ++r) {
        float* y = task.y + t * task.y_stride + row + r;
        float result = rows[r];
        if (task.first_chunk) {
          // Here and not at the end, because the residual may be Y itself.
          if (task.bias != nullptr) result += task.bias[row + r];
          if (task.residual != nullptr) {
            result += task.residual[t * task.residual_stride + row + r];
          }
        } else {
          result += *y;
        }
        *y = result;
      }
    }
  }
}

/// The activation of the task's rows, which are in L1 still.
inline void activate_rows(const gossamer::cpu::Nm24Task& task) {
  const std::int64_t begin = 2 * task.pair_begin;
  const std::int64_t end = 2 * task.pair_end < task.out ? 2 * task.pair_end : task.out;
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    float* y = task.y + t * task.y_stride + begin;
    finish_token<Float32>(y, nullptr, nullptr, y, end - begin, task.activation);
  }
}

template <int P, int T>
inline void linear_rows(const gossamer::cpu::Nm24Task& task) {
  std::int64_t pair = task.pair_begin;
  for (; pair + P <= task.pair_end; pair += P) linear_block<P, T>(task, pair);
  for (; pair < task.pair_end; ++pair) linear_block<1, T>(task, pair);
  if (task.last_chunk && task.activation != gossamer::Activation::kNone) activate_rows(task);
}
