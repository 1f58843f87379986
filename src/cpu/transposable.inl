// SPDX-License-Identifier: BSD-3-Clause
// Transposable 2:4 masks, a tile a lane. Included inside an anonymous namespace, after the vectors
// of the instruction set: Floats, Codes, kLanes, load_columns and in_order.

/// kLanes tiles from `tile` on; false where a score is no finite number.
inline bool solve_lanes(const float* const (&scores)[4], std::uint8_t* const (&mask)[4],
                        std::int64_t tile) {
  Floats columns[4][4];
  Floats sum = Floats{};
  for (int r = 0; r < 4; ++r) {
    load_columns(scores[r] + tile * 4, columns[r]);
    for (int c = 0; c < 4; ++c) sum += columns[r][c] * 0.0f;  // NaN where one is not finite
  }
  const Codes codes = in_order(best_tile_24<Codes>(columns));
  for (int r = 0; r < 4; ++r) {
    // Four bits as four bytes, the lowest first.
    const Codes bytes = ((codes >> (4 * r) & 15) * 0x00204081) & 0x01010101;
    __builtin_memcpy(mask[r] + tile * 4, &bytes, sizeof(bytes));
  }
  const Codes bad = sum != 0.0f;
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= bad[i];
  return any == 0;
}

/// The last tiles, fewer than there are lanes.
inline bool solve_rest(const cpu::TransposableTask& task, std::int64_t tile) {
  float scores[4][4 * kLanes] = {};
  std::uint8_t mask[4][4 * kLanes];
  const std::int64_t count = (task.tiles - tile) * 4;
  for (int r = 0; r < 4; ++r) {
    for (std::int64_t i = 0; i < count; ++i) scores[r][i] = task.scores[r][tile * 4 + i];
  }
  const bool finite = solve_lanes({scores[0], scores[1], scores[2], scores[3]},
                                  {mask[0], mask[1], mask[2], mask[3]}, 0);
  for (int r = 0; r < 4; ++r) {
    for (std::int64_t i = 0; i < count; ++i) task.mask[r][tile * 4 + i] = mask[r][i];
  }
  return finite;
}

inline bool transposable_24(const cpu::TransposableTask& task) {
  bool finite = true;
  std::int64_t tile = 0;
  for (; tile + kLanes <= task.tiles; tile += kLanes) {
    finite &= solve_lanes(task.scores, task.mask, tile);
  }
  if (tile < task.tiles) finite &= solve_rest(task, tile);
  return finite;
}
