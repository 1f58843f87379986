// SPDX-License-Identifier: BSD-3-Clause
// The bitmask format on tile registers: kept values are expanded to their places in L1, a batch of
// tiles while the batch before it is multiplied. Included by amx_linear.inl.
//
// Expanding a tile takes the vector units two to three times as long as a product takes the tile
// unit. One behind the other they would add up, so a product follows every few rows.

/// Tiles of a batch, of each of G groups of 16 rows: two batches are at most 32 KiB.
template <int G>
constexpr int kBatchTiles = G <= 2 ? 8 : 4;

template <int G>
struct Batch {
  alignas(64) std::byte tiles[G][kBatchTiles<G>][kTileBytes];
  bool any[G][kBatchTiles<G>];  ///< a kept value
};

/// G groups of 16 rows, expanded batch by batch and, in a batch, part by part: there are
/// G · kBatchTiles parts, which are expanded in their order. Rows past the last are zero.
template <typename Element, int G>
class Expansion {
 public:
  static constexpr int kTiles = kBatchTiles<G>;
  static constexpr int kParts = G * kTiles;

  Expansion(const gossamer::cpu::KcsrAddTask& task, std::int64_t first_row)
      : task_(task), first_row_(first_row) {
    const auto* values = static_cast<const Value*>(task.values);
    for (std::int64_t r = 0; r < G * kTileRows && first_row + r < task.rows; ++r) {
      next_[r] = values + task.begins[first_row + r];
    }
  }

  void expand(int part, Batch<G>& to) {
    constexpr std::int64_t kRows = kTileRows / kTiles;
    const int group = part / kTiles;
    const std::int64_t begin = part % kTiles * kRows;
    if (begin == 0) {
      for (Mask& mask : kept_) mask = 0;
    }
    for (std::int64_t r = begin; r < begin + kRows; ++r) {
      expand_row(group * kTileRows + r, to.tiles[group][0] + r * 64);
    }
    if (begin + kRows < kTileRows) return;
    for (int k = 0; k < kTiles; ++k) to.any[group][k] = kept_[k] != 0;
  }

  void expand_all(Batch<G>& to) {
    for (int part = 0; part < kParts; ++part) expand(part, to);
  }

  /// To the next batch.
  void advance() { column_ += kTiles * Element::kColumns; }

 private:
  using Value = typename Element::Value;
  using Mask = typename Element::Mask;

  /// One row of all tiles of the batch, at `line` of each.
  void expand_row(std::int64_t row, std::byte* line) {
    constexpr std::int64_t kAheadBytes = 256;
    if (first_row_ + row >= task_.rows) {
      for (int k = 0; k < kTiles; ++k) {
        _mm512_store_si512(line + k * kTileBytes, _mm512_setzero_si512());
      }
      return;
    }
    const std::uint8_t* bits = task_.bits + (first_row_ + row) * task_.row_bytes;
    const Value* values = next_[row];
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAheadBytes);
    for (int k = 0; k < kTiles; ++k) {
      const Mask mask = mask_at(bits, task_.first_input + column_ + k * Element::kColumns);
      _mm512_store_si512(line + k * kTileBytes, Element::expand(values, mask));
      values += _mm_popcnt_u64(mask);
      kept_[k] |= mask;
    }
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAheadBytes);
    next_[row] = values;
  }

  /// Bits [column, column + kColumns) of a row; none past the last input of the tile of X.
  Mask mask_at(const std::uint8_t* bits, std::int64_t column) const {
    if (column >= task_.first_input + task_.columns) return 0;
    return load_bits<Mask>(bits + column / 8, (task_.in - column + 7) / 8);
  }

  const gossamer::cpu::KcsrAddTask& task_;
  std::int64_t first_row_;
  std::int64_t column_ = 0;  ///< of the tile of X
  const Value* next_[G * kTileRows] = {};
  Mask kept_[kTiles] = {};
};

/// sums += weights · inputs for G groups of rows from `row` on.
template <typename Element, int NV, int G>
inline void add_expanded_rows(const gossamer::cpu::KcsrAddTask& task, std::int64_t row) {
  constexpr int N = vectors_at_once(NV);
  constexpr int kTiles = kBatchTiles<G>;
  constexpr std::int64_t kLanesOfPanel = NV * 16;
  const auto* inputs = static_cast<const float*>(task.tile);
  float* sums = task.sums + row * kLanesOfPanel;
  Batch<G> batches[2];
  Expansion<Element, G> expansion(task, row);
  expansion.expand_all(batches[0]);
  const std::int64_t all = (task.columns + Element::kColumns - 1) / Element::kColumns;
  for (std::int64_t done = 0; done < all; done += kTiles) {
    const Batch<G>& now = batches[done / kTiles % 2];
    Batch<G>& next = batches[(done / kTiles + 1) % 2];
    const bool is_last = done + kTiles >= all;
    expansion.advance();
    for (int n = 0; n < NV; n += N) {
      // A single pass keeps its sums in registers from the first tile to the last.
      if (N < NV || done == 0) {
        load_sums<G, N>(sums + n * 16, kLanesOfPanel, task.first && done == 0);
      }
      for (int k = 0; k < kTiles; ++k) {
        const float* tile_row = inputs + (done + k) * kTileRows * kLanesOfPanel + n * 16;
        repeat_for<G>([&]<int g>() {
          if (!is_last && n == 0) expansion.expand(k * G + g, next);
          if (now.any[g][k]) {
            multiply_group<Element, g, N>(now.tiles[g][k], tile_row, kLanesOfPanel);
          }
        });
      }
      if (N < NV || is_last) store_sums<G, N>(sums + n * 16, kLanesOfPanel);
    }
  }
}

template <typename Element, int NV>
void add_expanded(const gossamer::cpu::KcsrAddTask& task) {
  constexpr int G = groups_at_once(NV);
  Tiles::configure();
  std::int64_t row = 0;
  for (; row + (G - 1) * kTileRows < task.rows; row += G * kTileRows) {
    add_expanded_rows<Element, NV, G>(task, row);
  }
  for (; row < task.rows; row += kTileRows) add_expanded_rows<Element, NV, 1>(task, row);
  Tiles::release();
}

/// The same where X holds something that is not finite: what is pruned is left out, value by value.
template <int NV>
void add_kept_pairs(const gossamer::cpu::KcsrAddTask& task) {
  constexpr std::int64_t kPanel = NV * kLanes;
  const auto* values = static_cast<const std::uint16_t*>(task.values);
  const auto* tile = static_cast<const float*>(task.tile);
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::uint8_t* bits = task.bits + row * task.row_bytes;
    const std::uint16_t* value = values + task.begins[row];
    float* sums = task.sums + row * kPanel;
    Vector sum[NV];
    for (int n = 0; n < NV; ++n) sum[n] = task.first ? zero() : load(sums + n * kLanes);
    for (std::int64_t k = 0; k < task.columns; ++k) {
      const std::int64_t column = task.first_input + k;
      if ((bits[column / 8] >> (column % 8) & 1) == 0) continue;
      const Vector weight = BFloat16::broadcast(value++);
      for (int n = 0; n < NV; ++n) {
        const __m512i pairs = _mm512_loadu_si512(tile + k / 2 * kPanel + n * kLanes);
        const __m512i x = k % 2 != 0 ? _mm512_and_si512(pairs, _mm512_set1_epi32(-65536))
                                     : _mm512_slli_epi32(pairs, 16);
        sum[n] = multiply_add(weight, _mm512_castsi512_ps(x), sum[n]);
      }
    }
    for (int n = 0; n < NV; ++n) store(sums + n * kLanes, sum[n]);
  }
}

/// Where every row's values of a block of inputs begin; columns are not written.
void count_kept(const gossamer::cpu::BitmaskIndexTask& task) {
  const std::int64_t row_bytes = (task.in + 7) / 8;
  const std::int64_t block_bytes = task.block / 8;
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < task.rows; ++row) {
    const std::uint8_t* bits = task.bits + row * row_bytes;
    std::uint32_t* segment = task.segments + row;
    for (std::int64_t begin = 0; begin < row_bytes; begin += block_bytes) {
      *segment = static_cast<std::uint32_t>(count);
      segment += task.rows;
      const std::int64_t end = row_bytes - begin < block_bytes ? row_bytes : begin + block_bytes;
      for (std::int64_t i = begin; i < end; i += 8) {
        count += _mm_popcnt_u64(load_bits<std::uint64_t>(bits + i, end - i));
      }
    }
    *segment = static_cast<std::uint32_t>(count);
  }
}
