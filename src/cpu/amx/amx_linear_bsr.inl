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
// finish the pair before, and turn the pieces of the next group of rows.

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

/// 32 outputs and what they keep.
struct Band {
  std::int64_t row;
  std::int64_t begin;  ///< pieces of its group
  std::int64_t end;
};

/// A few bands, whose pieces are turned and lie in L1 or L2.
struct BandGroup {
  Band bands[gossamer::cpu::kGroupBands];
  int count = 0;
  std::int64_t pieces = 0;
  std::int64_t turned = 0;    ///< of them
  std::byte* weights;         ///< [pieces][2 tiles][16][64]
  const std::byte** sources;  ///< [pieces], rows of block_cols
  std::int64_t* inputs;       ///< [pieces], bytes from where a row of X begins
};

/// Goes through the bands of a task, a group at a time.
template <typename Element>
class BandGroups {
 public:
  BandGroups(const gossamer::cpu::TileBlocksTask& task, std::int64_t value_bytes)
      : task_(task), row_bytes_(task.block_cols * value_bytes), x_bytes_(task.in * value_bytes) {}

  /// The next bands, none behind the last.
  void next(BandGroup& group) {
    using namespace gossamer::cpu;
    group.count = 0;
    group.pieces = 0;
    group.turned = 0;
    while (group.count < kGroupBands && row_ < task_.out.rows) {
      const std::int64_t* offsets = task_.offsets + row_ / task_.block_rows;
      const std::int64_t most = (offsets[1] - offsets[0]) * (row_bytes_ / kPieceLine);
      if (group.count > 0 && group.pieces + most > kGroupPieces) return;
      Band& band = group.bands[group.count++];
      band.row = row_;
      band.begin = group.pieces;
      for (std::int64_t i = offsets[0]; i < offsets[1]; ++i) list_block(i, group);
      band.end = group.pieces;
      row_ += kPieceRows;
    }
  }

  /// Turns pieces until `count` of them are.
  void turn(BandGroup& group, std::int64_t count) const {
    for (; group.turned < count; ++group.turned) {
      const std::byte* from = group.sources[group.turned];
      std::byte* to = group.weights + group.turned * gossamer::cpu::kPieceBytes;
      turn_tile(from, to);
      turn_tile(from + Element::kSecondTile * row_bytes_, to + 1024);
    }
  }

 private:
  /// What the current band has of a block, but for columns behind the last input.
  void list_block(std::int64_t block, BandGroup& group) const {
    using namespace gossamer::cpu;
    const std::byte* from = static_cast<const std::byte*>(task_.values) +
                            (block * task_.block_rows + row_ % task_.block_rows) * row_bytes_;
    const std::int64_t first = task_.cols[block] * row_bytes_;
    for (std::int64_t at = 0; at < row_bytes_ && first + at < x_bytes_; at += kPieceLine) {
      group.sources[group.pieces] = from + at;
      group.inputs[group.pieces++] = first + at;
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
inline void multiply_band(const BandGroup& group, const Band& band, const InputTile (&x)[2]) {
  Tiles::zero<0>();
  Tiles::zero<1>();
  if constexpr (N == 2) {
    Tiles::zero<2>();
    Tiles::zero<3>();
  }
  for (std::int64_t i = band.begin; i < band.end; ++i) {
    const std::byte* weights = group.weights + i * gossamer::cpu::kPieceBytes;
    const std::int64_t at = group.inputs[i];
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

/// Sums that are not yet in Y: of the bands of a group and at most two tiles of tokens.
struct UnfinishedSums {
  float* sums;  ///< [bands][32 tokens][2 tiles][16]
  std::int64_t rows[gossamer::cpu::kGroupBands];
  int bands = 0;
  std::int64_t token;
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

/// Part `part` of `parts` of the tokens.
inline void finish_part(Bf16Pieces, const gossamer::cpu::TileBlocksTask& task,
                        const UnfinishedSums& unfinished, int part, int parts) {
  const std::int64_t end = unfinished.tokens * (part + 1) / parts;
  for (std::int64_t t = unfinished.tokens * part / parts; t < end; ++t) {
    for (int b = 0; b < unfinished.bands; ++b) {
      finish_words(task.out, unfinished.sums + b * 1024 + t * 32, unfinished.rows[b],
                   unfinished.token + t);
    }
  }
}

inline void finish_part(Int8Pieces, const gossamer::cpu::TileBlocksTask& task,
                        const UnfinishedSums& unfinished, int part, int parts) {
  const std::int64_t begin = unfinished.tokens * part / parts;
  const std::int64_t end = unfinished.tokens * (part + 1) / parts;
  for (int b = 0; b < unfinished.bands; ++b) {
    const std::int64_t row = unfinished.rows[b];
    const std::int64_t rows = task.out.rows - row < 32 ? task.out.rows - row : 32;
    const std::int64_t token = unfinished.token + begin;
    float* sums = unfinished.sums + b * 1024 + begin * 32;
    dequantize({sums, 32, end - begin, rows, nullptr, task.x_scale + token,
                task.weight_scale == nullptr ? nullptr : task.weight_scale + row});
    gossamer::cpu::FinishTask out =
        part_of<Float32>(task.out, sums, 32, row, rows, token, end - begin);
    finish<Float32>(out);
  }
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
  BandGroup groups[2];
  for (BandGroup& group : groups) group.weights = take(task.pieces * kPieceBytes);
  float* sums[2];
  for (float*& each : sums) each = reinterpret_cast<float*>(take(kGroupBands * 4096));
  for (BandGroup& group : groups) {
    group.sources = reinterpret_cast<const std::byte**>(take(task.pieces * 8));
    group.inputs = reinterpret_cast<std::int64_t*>(take(task.pieces * 8));
  }
  const InputTiles x(task, value_bytes, memory);
  BandGroups<Element> bands(task, value_bytes);
  const std::int64_t tokens = task.out.tokens;
  const std::int64_t pairs = (tokens + kPairTokens - 1) / kPairTokens;
  UnfinishedSums before;

  Tiles::configure();
  bands.next(groups[0]);
  bands.turn(groups[0], groups[0].pieces);
  for (int now = 0; groups[now].count > 0; now = 1 - now) {
    const BandGroup& group = groups[now];
    BandGroup& next = groups[1 - now];
    bands.next(next);
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const std::int64_t token = pair * kPairTokens;
      const bool two = tokens - token > 16;
      const InputTile tiles[2] = {x.at(token), two ? x.at(token + 16) : InputTile{}};
      UnfinishedSums current;
      current.sums = sums[0];
      current.bands = group.count;
      current.token = token;
      current.tokens = tokens - token < kPairTokens ? tokens - token : kPairTokens;
      for (int b = 0; b < group.count; ++b) {
        const Band& band = group.bands[b];
        current.rows[b] = band.row;
        two ? multiply_band<Element, 2>(group, band, tiles)
            : multiply_band<Element, 1>(group, band, tiles);
        finish_part(Element{}, task, before, b, group.count);
        bands.turn(next, next.pieces * (pair * group.count + b + 1) / (pairs * group.count));
        two ? store_band<2>(current.sums + b * 1024) : store_band<1>(current.sums + b * 1024);
      }
      before = current;
      sums[0] = sums[1];
      sums[1] = before.sums;
    }
  }
  finish_part(Element{}, task, before, 0, 1);
  Tiles::release();
}
