// SPDX-License-Identifier: BSD-3-Clause
// The steps of kernels on tile registers. Included inside an anonymous namespace behind the AVX-512
// files and a definition of Tiles: the processor's, or a model of it in plain code.
//
//            16 tokens
//           ┌─────────┐
//   64 bytes│ inputs  │   as X's tile has them: a row for each pair or four of inputs
//           └─────────┘
//  ┌───────┐┌─────────┐
//  │weights││  sums   │   16 rows of each
//  └───────┘└─────────┘
//
// Weights are the left operand, because 64 bytes of a row of W are 64 bytes of a tile's row: kept
// values are expanded to their places in L1, blocks are loaded from where they lie. A product takes
// 16 cycles of the tile unit however many tokens there are, and waits 52 for a sum that the one
// before it left, so at least four sums are kept at once: of several groups of 16 rows where the
// panel is narrow.

struct Bf16Tile {
  using Value = std::uint16_t;
  using Mask = std::uint32_t;
  static constexpr std::int64_t kColumns = 32;  ///< inputs of a tile
  static __m512i expand(const Value* values, Mask mask) {
    return expand_words(mask, _mm512_loadu_si512(values));
  }
  template <int sum, int weights, int inputs>
  static void multiply() {
    Tiles::dot_bf16<sum, weights, inputs>();
  }
};

struct Int8Tile {
  using Value = std::int8_t;
  using Mask = std::uint64_t;
  static constexpr std::int64_t kColumns = 64;
  static __m512i expand(const Value* values, Mask mask) {
    return expand_bytes(mask, _mm512_loadu_si512(values));
  }
  template <int sum, int weights, int inputs>
  static void multiply() {
    Tiles::dot_int8<sum, weights, inputs>();
  }
};

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileBytes = 1024;
constexpr int kFirstWeights = 6;  ///< registers 0 to 5 hold sums, 6 weights, 7 inputs
constexpr int kInputs = 7;

/// Of a panel of NV vectors of 16 tokens: how many are multiplied at once, and by how many groups
/// of 16 rows.
constexpr int vectors_at_once(int vectors) { return vectors <= 4 ? vectors : vectors == 6 ? 3 : 4; }
constexpr int groups_at_once(int vectors) {
  return vectors == 1 ? 4 : vectors <= 3 ? 2 : vectors == 6 ? 2 : 1;
}

template <int... i>
struct Sequence {};
template <int count, int... i>
struct Counted : Counted<count - 1, count - 1, i...> {};
template <int... i>
struct Counted<0, i...> {
  using Type = Sequence<i...>;
};

/// Calls f.operator()<0>() to f.operator()<count - 1>().
template <int count, typename F>
inline void repeat_for(const F& f) {
  [&]<int... i>(Sequence<i...>) {
    (f.template operator()<i>(), ...);
  }(typename Counted<count>::Type{});
}

/// The sums of G groups of 16 rows for N vectors of a panel of `lanes` tokens.
template <int G, int N>
inline void load_sums(const float* sums, std::int64_t lanes, bool first) {
  repeat_for<G * N>([&]<int i>() {
    if (first) {
      Tiles::zero<i>();
    } else {
      Tiles::load<i>(sums + i / N * kTileRows * lanes + i % N * 16, lanes * 4);
    }
  });
}

template <int G, int N>
inline void store_sums(float* sums, std::int64_t lanes) {
  repeat_for<G * N>(
      [&]<int i>() { Tiles::store<i>(sums + i / N * kTileRows * lanes + i % N * 16, lanes * 4); });
}

/// One tile of inputs of each vector by one tile of weights of each group, `group_bytes` apart.
/// Where there are more vectors than groups the weights stay in their register, and where there are
/// more groups the inputs.
template <typename Element, int G, int N>
inline void multiply_tiles(const std::byte* weights, std::int64_t row_bytes,
                           std::int64_t group_bytes, const float* tile_row, std::int64_t lanes) {
  if constexpr (N >= G) {
    repeat_for<G>([&]<int g>() {
      Tiles::load<kFirstWeights>(weights + g * group_bytes, row_bytes);
      repeat_for<N>([&]<int n>() {
        Tiles::load<kInputs>(tile_row + n * 16, lanes * 4);
        Element::template multiply<g * N + n, kFirstWeights, kInputs>();
      });
    });
  } else {
    repeat_for<N>([&]<int n>() {
      Tiles::load<kInputs>(tile_row + n * 16, lanes * 4);
      repeat_for<G>([&]<int g>() {
        Tiles::load<kFirstWeights>(weights + g * group_bytes, row_bytes);
        Element::template multiply<g * N + n, kFirstWeights, kInputs>();
      });
    });
  }
}

// ---- The bitmask format ----

/// Tiles of weights that are expanded before they are multiplied, of each group.
constexpr std::int64_t kExpandedTiles = 8;

template <typename Element, int G>
struct Expanded {
  alignas(64) std::byte tiles[G][kExpandedTiles][kTileBytes];
  bool any[kExpandedTiles];  ///< a kept value in any group
};

/// Bits [column, column + kColumns) of a row of `in`.
template <typename Element>
inline typename Element::Mask mask_at(const std::uint8_t* bits, std::int64_t column,
                                      std::int64_t in) {
  return load_bits<typename Element::Mask>(bits + column / 8, (in - column + 7) / 8);
}

/// Tiles from input `column` on of some rows, `next[r]` being the next value of row r. Rows past
/// the last are zero.
template <typename Element, int G>
inline void expand_tiles(const gossamer::cpu::KcsrAddTask& task, std::int64_t first_row,
                         std::int64_t column, std::int64_t tiles,
                         const typename Element::Value** next, Expanded<Element, G>& to) {
  constexpr std::int64_t kAheadBytes = 512;
  typename Element::Mask kept[kExpandedTiles] = {};
  for (std::int64_t r = 0; r < G * kTileRows; ++r) {
    std::byte* line = to.tiles[r / kTileRows][0] + r % kTileRows * 64;
    if (first_row + r >= task.rows) {
      for (std::int64_t k = 0; k < tiles; ++k) {
        _mm512_store_si512(line + k * kTileBytes, _mm512_setzero_si512());
      }
      continue;
    }
    const std::uint8_t* bits = task.bits + (first_row + r) * task.row_bytes;
    const auto* values = next[r];
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAheadBytes);
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAheadBytes + 64);
    for (std::int64_t k = 0; k < tiles; ++k) {
      const auto mask = mask_at<Element>(bits, column + k * Element::kColumns, task.in);
      _mm512_store_si512(line + k * kTileBytes, Element::expand(values, mask));
      values += _mm_popcnt_u64(mask);
      kept[k] |= mask;
    }
    next[r] = values;
  }
  for (std::int64_t k = 0; k < tiles; ++k) to.any[k] = kept[k] != 0;
}

/// sums += weights · inputs for G groups of rows from `row` on.
template <typename Element, int NV, int G>
inline void add_expanded_rows(const gossamer::cpu::KcsrAddTask& task, std::int64_t row) {
  constexpr int N = vectors_at_once(NV);
  constexpr std::int64_t kLanesOfPanel = NV * 16;
  const auto* values = static_cast<const typename Element::Value*>(task.values);
  const auto* inputs = static_cast<const float*>(task.tile);
  const typename Element::Value* next[G * kTileRows] = {};
  for (std::int64_t r = 0; r < G * kTileRows && row + r < task.rows; ++r) {
    next[r] = values + task.begins[row + r];
  }
  Expanded<Element, G> weights;
  float* sums = task.sums + row * kLanesOfPanel;
  const std::int64_t all = (task.columns + Element::kColumns - 1) / Element::kColumns;
  for (std::int64_t done = 0; done < all; done += kExpandedTiles) {
    const std::int64_t tiles = all - done < kExpandedTiles ? all - done : kExpandedTiles;
    expand_tiles<Element, G>(task, row, task.first_input + done * Element::kColumns, tiles, next,
                             weights);
    for (int n = 0; n < NV; n += N) {
      // A single pass keeps its sums in registers from the first tile to the last.
      if (N < NV || done == 0) {
        load_sums<G, N>(sums + n * 16, kLanesOfPanel, task.first && done == 0);
      }
      for (std::int64_t k = 0; k < tiles; ++k) {
        if (!weights.any[k]) continue;
        multiply_tiles<Element, G, N>(weights.tiles[0][k], 64, kExpandedTiles * kTileBytes,
                                      inputs + (done + k) * kTileRows * kLanesOfPanel + n * 16,
                                      kLanesOfPanel);
      }
      if (N < NV || done + tiles == all) store_sums<G, N>(sums + n * 16, kLanesOfPanel);
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

// ---- The bsr format: blocks of whole tiles ----

/// G groups of 16 rows of one block row for all its blocks in the tile of X.
template <typename Element, int NV, int G>
inline void add_block_tiles(const gossamer::cpu::KcsrAddTask& task, std::int64_t begin,
                            std::int64_t end, const std::byte* values, float* sums) {
  constexpr int N = vectors_at_once(NV);
  constexpr std::int64_t kLanesOfPanel = NV * 16;
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(typename Element::Value));
  const auto* inputs = static_cast<const float*>(task.tile);
  const std::int64_t row_bytes = task.block_cols * kBytes;
  const std::int64_t block_bytes = task.block_rows * row_bytes;
  for (int n = 0; n < NV; n += N) {
    load_sums<G, N>(sums + n * 16, kLanesOfPanel, task.first);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t input = task.block_col[i] * task.block_cols - task.first_input;
      const std::int64_t count =
          task.columns - input < task.block_cols ? task.columns - input : task.block_cols;
      const std::byte* block = values + i * block_bytes;
      const float* rows = inputs + input * kBytes / 4 * kLanesOfPanel + n * 16;
      for (std::int64_t c = 0; c < count; c += Element::kColumns) {
        multiply_tiles<Element, G, N>(block + c * kBytes, row_bytes, kTileRows * row_bytes,
                                      rows + c * kBytes / 4 * kLanesOfPanel, kLanesOfPanel);
      }
    }
    store_sums<G, N>(sums + n * 16, kLanesOfPanel);
  }
}

template <typename Element, int NV>
void add_tile_blocks(const gossamer::cpu::KcsrAddTask& task) {
  constexpr int G = groups_at_once(NV);
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(typename Element::Value));
  const auto* values = static_cast<const std::byte*>(task.values);
  const std::int64_t row_bytes = task.block_cols * kBytes;
  Tiles::configure();
  for (std::int64_t first = 0, b = 0; first < task.rows; first += task.block_rows, ++b) {
    std::int64_t row = 0;
    for (; row + G * kTileRows <= task.block_rows; row += G * kTileRows) {
      add_block_tiles<Element, NV, G>(task, task.begins[b], task.ends[b], values + row * row_bytes,
                                      task.sums + (first + row) * NV * 16);
    }
    for (; row < task.block_rows; row += kTileRows) {
      add_block_tiles<Element, NV, 1>(task, task.begins[b], task.ends[b], values + row * row_bytes,
                                      task.sums + (first + row) * NV * 16);
    }
  }
  Tiles::release();
}

// ---- What the drivers call ----

constexpr gossamer::cpu::KcsrFunctions kBitmaskBf16{
    kLanes,
    pack_pairs,
    {add_expanded<Bf16Tile, 1>, add_expanded<Bf16Tile, 2>, add_expanded<Bf16Tile, 3>,
     add_expanded<Bf16Tile, 4>, add_expanded<Bf16Tile, 6>, add_expanded<Bf16Tile, 8>},
    store_panel<BFloat16>,
    nullptr,
    nullptr,
    {add_kept_pairs<1>, add_kept_pairs<2>, add_kept_pairs<3>, add_kept_pairs<4>, add_kept_pairs<6>,
     add_kept_pairs<8>},
    2};

constexpr gossamer::cpu::KcsrFunctions kBitmaskInt8{
    kLanes,
    pack_quads<0>,
    {add_expanded<Int8Tile, 1>, add_expanded<Int8Tile, 2>, add_expanded<Int8Tile, 3>,
     add_expanded<Int8Tile, 4>, add_expanded<Int8Tile, 6>, add_expanded<Int8Tile, 8>},
    store_quads,
    nullptr,
    nullptr,
    {},
    4};

// A block keeps all its positions, so nothing of X has to be kept from a product.
bool pack_all_pairs(const gossamer::cpu::KcsrPackTask& task) {
  pack_pairs(task);
  return true;
}

constexpr gossamer::cpu::KcsrFunctions kBlocksBf16{
    kLanes,
    pack_all_pairs,
    {add_tile_blocks<Bf16Tile, 1>, add_tile_blocks<Bf16Tile, 2>, add_tile_blocks<Bf16Tile, 3>,
     add_tile_blocks<Bf16Tile, 4>, add_tile_blocks<Bf16Tile, 6>, add_tile_blocks<Bf16Tile, 8>},
    store_panel<BFloat16>,
    nullptr,
    nullptr,
    {},
    2};

constexpr gossamer::cpu::KcsrFunctions kBlocksInt8{
    kLanes,
    pack_quads<0>,
    {add_tile_blocks<Int8Tile, 1>, add_tile_blocks<Int8Tile, 2>, add_tile_blocks<Int8Tile, 3>,
     add_tile_blocks<Int8Tile, 4>, add_tile_blocks<Int8Tile, 6>, add_tile_blocks<Int8Tile, 8>},
    store_quads,
    nullptr,
    nullptr,
    {},
    4};
