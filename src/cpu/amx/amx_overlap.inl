// SPDX-License-Identifier: BSD-3-Clause
// The bitmask format on tile registers for few tokens: a batch of tiles is expanded while the one
// before it is multiplied. Included behind amx_linear.inl.
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

/// sums[g·N + …] += one tile of weights of group g by one tile of inputs of each vector.
template <typename Element, int g, int N>
inline void multiply_group(const std::byte* weights, const float* tile_row, std::int64_t lanes) {
  Tiles::load<kFirstWeights>(weights, 64);
  repeat_for<N>([&]<int n>() {
    Tiles::load<kInputs>(tile_row + n * 16, lanes * 4);
    Element::template multiply<g * N + n, kFirstWeights, kInputs>();
  });
}

/// sums += weights · inputs for G groups of rows from `row` on.
template <typename Element, int NV, int G>
inline void add_overlapped_rows(const gossamer::cpu::KcsrAddTask& task, std::int64_t row) {
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
void add_overlapped(const gossamer::cpu::KcsrAddTask& task) {
  constexpr int G = groups_at_once(NV);
  Tiles::configure();
  std::int64_t row = 0;
  for (; row + (G - 1) * kTileRows < task.rows; row += G * kTileRows) {
    add_overlapped_rows<Element, NV, G>(task, row);
  }
  for (; row < task.rows; row += kTileRows) add_overlapped_rows<Element, NV, 1>(task, row);
  Tiles::release();
}

constexpr gossamer::cpu::KcsrFunctions kOverlappedBf16{
    kLanes,
    pack_pairs,
    {add_overlapped<Bf16Tile, 1>, add_overlapped<Bf16Tile, 2>, add_overlapped<Bf16Tile, 3>,
     add_overlapped<Bf16Tile, 4>, add_overlapped<Bf16Tile, 6>, add_overlapped<Bf16Tile, 8>},
    store_panel<BFloat16>,
    nullptr,
    nullptr,
    {add_kept_pairs<1>, add_kept_pairs<2>, add_kept_pairs<3>, add_kept_pairs<4>, add_kept_pairs<6>,
     add_kept_pairs<8>},
    2};

constexpr gossamer::cpu::KcsrFunctions kOverlappedInt8{
    kLanes,
    pack_quads<0>,
    {add_overlapped<Int8Tile, 1>, add_overlapped<Int8Tile, 2>, add_overlapped<Int8Tile, 3>,
     add_overlapped<Int8Tile, 4>, add_overlapped<Int8Tile, 6>, add_overlapped<Int8Tile, 8>},
    store_quads,
    nullptr,
    nullptr,
    {},
    4};
