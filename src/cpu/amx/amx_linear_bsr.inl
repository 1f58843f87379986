// SPDX-License-Identifier: BSD-3-Clause
// Blocks of whole pieces of 32 rows by 64 bytes on tile registers, X as the left operand. Included
// inside an anonymous namespace behind vector.inl, epilogue.inl, quarters.inl, dequantize.inl and a
// definition of Tiles.
//
//                            16 outputs
//                           ┌─────────┐
//                   64 bytes│ weights │   a row for each pair or four of inputs
//              64 bytes     └─────────┘
//             ┌───────────┐ ┌─────────┐
//   16 tokens │  inputs   │ │  sums   │
//             └───────────┘ └─────────┘
//
// 64 bytes of a row of X are those of a tile's row, and the sums of a token lie side by side as Y
// does: nothing of X or Y is turned. What is turned is W, once for all tokens, and only what is
// kept. 32 outputs by two tiles of tokens are four sums, as many as hide a product's 52 cycles.
//
// The tile unit works by itself: while it multiplies one pair of token tiles, the vector units
// finish the pair before, and turn the pieces of the next 32 rows. Two or four bands of 32 rows at
// a time write Y in longer runs but leave L1 (without a tile unit, 3072x768 at 80 % zeros: 187 us
// instead of 161; Emerald Rapids, 2026-11-30).

/// The two tiles of a piece hold its even and its odd rows, so that two sums side by side in 32
/// bits are two neighbouring results.
struct Bf16Pieces {
  static constexpr std::int64_t kRowStep = 2;
  static constexpr std::int64_t kSecondTile = 1;  ///< its first row
  template <int sum, int inputs, int weights>
  static void multiply() {
    Tiles::dot_bf16<sum, inputs, weights>();
  }
};

struct Int8Pieces {
  static constexpr std::int64_t kRowStep = 1;
  static constexpr std::int64_t kSecondTile = 16;
  template <int sum, int inputs, int weights>
  static void multiply() {
    Tiles::dot_int8<sum, inputs, weights>();
  }
};

/// 32 outputs and the pieces that they keep.
struct Band {
  std::int64_t row;
  std::int64_t pieces = 0;
  std::int64_t turned = 0;    ///< of them
  std::byte* weights;         ///< [pieces][2 tiles][16][64]
  const std::byte** sources;  ///< [pieces], rows of block_cols
  std::int64_t* inputs;       ///< [pieces], bytes from where a row of X begins
};

/// Goes through the bands of a task.
template <typename Element>
class Bands {
 public:
  Bands(const gossamer::cpu::TileBlocksTask& task, std::int64_t value_bytes)
      : task_(task), row_bytes_(task.block_cols * value_bytes), x_bytes_(task.in * value_bytes) {}

  /// To the next band; false behind the last.
  bool next(Band& band) {
    if (row_ >= task_.out.rows) return false;
    const std::int64_t* offsets = task_.offsets + row_ / task_.block_rows;
    band.row = row_;
    band.pieces = 0;
    band.turned = 0;
    for (std::int64_t i = offsets[0]; i < offsets[1]; ++i) list_block(i, band);
    row_ += gossamer::cpu::kPieceRows;
    return true;
  }

  /// Turns pieces until `count` of them are.
  void turn(Band& band, std::int64_t count) const {
    for (; band.turned < count; ++band.turned) {
      const std::byte* from = band.sources[band.turned];
      std::byte* to = band.weights + band.turned * gossamer::cpu::kPieceBytes;
      turn_tile(from, to);
      turn_tile(from + Element::kSecondTile * row_bytes_, to + 1024);
    }
  }

 private:
  /// What a band has of a block, but for columns behind the last input.
  void list_block(std::int64_t block, Band& band) const {
    using namespace gossamer::cpu;
    const std::byte* from = static_cast<const std::byte*>(task_.values) +
                            (block * task_.block_rows + row_ % task_.block_rows) * row_bytes_;
    const std::int64_t first = task_.cols[block] * row_bytes_;
    for (std::int64_t at = 0; at < row_bytes_ && first + at < x_bytes_; at += kPieceLine) {
      band.sources[band.pieces] = from + at;
      band.inputs[band.pieces++] = first + at;
    }
  }

  void turn_tile(const std::byte* from, std::byte* to) const {
    const std::int64_t stride = Element::kRowStep * row_bytes_ / 4;
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      const auto* words = reinterpret_cast<const float*>(from) + 4 * quarter;
      Vector v[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) v[j] = load_quarters(words, stride, j, kLanes);
      turn_quarters(v);
      float* rows = reinterpret_cast<float*>(to) + 4 * quarter * kLanes;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(rows + j * kLanes, v[j]);
    }
  }

  const gossamer::cpu::TileBlocksTask& task_;
  std::int64_t row_bytes_;  ///< of a block
  std::int64_t x_bytes_;    ///< of a row of X
  std::int64_t row_ = 0;
};

/// 16 tokens of X: byte k of a row of it, k a multiple of 64, is at rows + k · step.
struct InputTile {
  const std::byte* rows;
  std::int64_t stride;
  std::int64_t step;
};

/// X in tiles of 16 tokens by 64 bytes. Tiles that are read often are copied, one behind the other,
/// because the lines of X lie as far apart as X is wide and come from L2 slowly; so are those that
/// are not whole, with zeros for what is not there. Others are read where they lie.
class InputTiles {
 public:
  InputTiles(const gossamer::cpu::TileBlocksTask& task, std::int64_t value_bytes, std::byte* memory)
      : x_(static_cast<const std::byte*>(task.x)),
        stride_(task.x_stride * value_bytes),
        row_bytes_(task.in * value_bytes),
        tokens_(task.out.tokens),
        copies_(memory) {
    using namespace gossamer::cpu;
    constexpr std::int64_t kOften = 4;  // copying is as fast as reading about as often
    const std::int64_t block_rows = (task.out.rows + task.block_rows - 1) / task.block_rows;
    const std::int64_t reads = (task.offsets[block_rows] - task.offsets[0]) *
                               (task.block_rows / kPieceRows) *
                               (task.block_cols * value_bytes / kPieceLine);
    copies_all_ = row_bytes_ % 64 != 0 || reads >= kOften * lines();
    for (std::int64_t t = copies_all_ ? 0 : tokens_ / 16 * 16; t < tokens_; t += 16) copy(t);
  }

  InputTile at(std::int64_t token) const {
    if (copies_all_ || token + 16 > tokens_) return {copies_ + token * lines() * 64, 64, 16};
    return {x_ + token * stride_, stride_, 1};
  }

 private:
  std::int64_t lines() const { return (row_bytes_ + 63) / 64; }

  /// 16 tokens from `first` on.
  void copy(std::int64_t first) {
    std::byte* tiles = copies_ + first * lines() * 64;
    for (std::int64_t t = 0; t < 16; ++t) {
      const std::byte* from = x_ + (first + t) * stride_;
      for (std::int64_t at = 0; at < row_bytes_; at += 64) {
        __m512i line = _mm512_setzero_si512();
        if (first + t < tokens_) {
          const std::int64_t left = row_bytes_ - at;
          line = left >= 64 ? _mm512_loadu_si512(from + at)
                            : _mm512_maskz_loadu_epi8((1ull << left) - 1, from + at);
        }
        _mm512_store_si512(tiles + at * 16 + t * 64, line);
      }
    }
  }

  const std::byte* x_;
  std::int64_t stride_;
  std::int64_t row_bytes_;
  std::int64_t tokens_;
  std::byte* copies_;
  bool copies_all_;
};

/// Sums 2n and 2n + 1 of a band for N tiles of tokens, in registers 0 to 3.
template <typename Element, int N>
inline void multiply_band(const Band& band, const InputTile (&x)[2]) {
  Tiles::zero<0>();
  Tiles::zero<1>();
  if constexpr (N == 2) {
    Tiles::zero<2>();
    Tiles::zero<3>();
  }
  for (std::int64_t i = 0; i < band.pieces; ++i) {
    const std::byte* weights = band.weights + i * gossamer::cpu::kPieceBytes;
    const std::int64_t at = band.inputs[i];
    Tiles::load<4>(x[0].rows + at * x[0].step, x[0].stride);
    Tiles::load<6>(weights, 64);
    Element::template multiply<0, 4, 6>();
    Tiles::load<7>(weights + 1024, 64);
    Element::template multiply<1, 4, 7>();
    if constexpr (N == 2) {
      Tiles::load<5>(x[1].rows + at * x[1].step, x[1].stride);
      Element::template multiply<2, 5, 6>();
      Element::template multiply<3, 5, 7>();
    }
  }
}

/// To sums[token][tile of 16].
template <int N>
inline void store_band(float* sums) {
  constexpr std::int64_t kStride = 128;
  Tiles::store<0>(sums, kStride);
  Tiles::store<1>(sums + 16, kStride);
  if constexpr (N == 2) {
    Tiles::store<2>(sums + 512, kStride);
    Tiles::store<3>(sums + 528, kStride);
  }
}

/// Sums that are not yet in Y: of a band and at most two tiles of tokens.
struct UnfinishedSums {
  std::int64_t row = 0;
  std::int64_t token = 0;
  std::int64_t tokens = 0;
};

/// To nearest, as BFloat16::narrow does: results are the upper halves.
inline __m512i rounded_words(Vector v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
}

/// 32 results of one token from the sums of its even and its odd rows.
inline void finish_words(const gossamer::cpu::FinishTask& out, const float* sums, std::int64_t row,
                         std::int64_t token) {
  const std::int64_t left = out.rows - row;
  const __mmask32 live = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
  Vector even = load(sums);
  Vector odd = load(sums + 16);
  const auto add_words = [&](const void* from, std::int64_t at) {
    const __m512i words =
        _mm512_maskz_loadu_epi16(live, static_cast<const std::uint16_t*>(from) + at);
    even = add(even, _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)));
    odd = add(odd, _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536))));
  };
  if (out.bias != nullptr) add_words(out.bias, row);
  if (out.residual != nullptr) add_words(out.residual, token * out.residual_stride + row);
  if (out.activation != gossamer::Activation::kNone) {
    even = activate(even, out.activation);
    odd = activate(odd, out.activation);
  }
  const __m512i words = _mm512_mask_blend_epi16(
      0xaaaaaaaau, _mm512_srli_epi32(rounded_words(even), 16), rounded_words(odd));
  _mm512_mask_storeu_epi16(static_cast<std::uint16_t*>(out.y) + token * out.y_stride + row, live,
                           words);
}

/// `sums`: [tokens][2 tiles][16].
inline void finish_band(Bf16Pieces, const gossamer::cpu::TileBlocksTask& task,
                        const UnfinishedSums& unfinished, float* sums) {
  for (std::int64_t t = 0; t < unfinished.tokens; ++t) {
    finish_words(task.out, sums + t * 32, unfinished.row, unfinished.token + t);
  }
}

inline void finish_band(Int8Pieces, const gossamer::cpu::TileBlocksTask& task,
                        const UnfinishedSums& unfinished, float* sums) {
  const auto [row, token, tokens] = unfinished;
  if (tokens == 0) return;
  const std::int64_t rows = task.out.rows - row < 32 ? task.out.rows - row : 32;
  dequantize({sums, 32, tokens, rows, nullptr, task.x_scale + token,
              task.weight_scale == nullptr ? nullptr : task.weight_scale + row});
  finish<Float32>(part_of<Float32>(task.out, sums, 32, row, rows, token, tokens));
}

template <typename Element>
void multiply_tile_blocks(const gossamer::cpu::TileBlocksTask& task, std::int64_t value_bytes) {
  using namespace gossamer::cpu;
  auto* memory = reinterpret_cast<std::byte*>(task.scratch);
  const auto take = [&](std::int64_t bytes) {
    std::byte* taken = memory;
    memory += bytes;
    return taken;
  };
  Band both[2];
  for (Band& band : both) band.weights = take(task.pieces * kPieceBytes);
  auto* sums = reinterpret_cast<float*>(take(kPairTokens * kPieceRows * 4));
  for (Band& band : both) {
    band.sources = reinterpret_cast<const std::byte**>(take(task.pieces * 8));
    band.inputs = reinterpret_cast<std::int64_t*>(take(task.pieces * 8));
  }
  const InputTiles x(task, value_bytes, memory);
  Bands<Element> bands(task, value_bytes);
  const std::int64_t tokens = task.out.tokens;
  const std::int64_t pairs = (tokens + kPairTokens - 1) / kPairTokens;
  UnfinishedSums before;

  Tiles::configure();
  bool more = bands.next(both[0]);
  bands.turn(both[0], both[0].pieces);
  for (int now = 0; more; now = 1 - now) {
    const Band& band = both[now];
    Band& next = both[1 - now];
    more = bands.next(next);
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const std::int64_t token = pair * kPairTokens;
      const bool two = tokens - token > 16;
      const InputTile tiles[2] = {x.at(token), two ? x.at(token + 16) : InputTile{}};
      two ? multiply_band<Element, 2>(band, tiles) : multiply_band<Element, 1>(band, tiles);
      finish_band(Element{}, task, before, sums);
      if (more) bands.turn(next, next.pieces * (pair + 1) / pairs);
      two ? store_band<2>(sums) : store_band<1>(sums);
      before = {band.row, token, tokens - token < kPairTokens ? tokens - token : kPairTokens};
    }
  }
  finish_band(Element{}, task, before, sums);
  Tiles::release();
}
