// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/element.cuh"

// What a launch of sm90_gemm_sp24.cuh is given, at run time and at compile time.
namespace gossamer::cuda::sm90 {

template <typename T>
struct GemmParams {
  const T* x;  // read where the kernel does not use the copy engine for X
  void* y;
  std::int64_t x_stride;
  std::int64_t y_stride;
  Epilogue<T> epilogue;
  int in;
  int input_tiles;
  int row_blocks;  // blocks along the rows, a multiple of `shared_by`
  int token_blocks;
  int shared_by;   // blocks of a cluster that need the same X
  int tail_share;  // tokens that each of them loads of a last tile that is not full
  int split;       // parts of the inputs
  bool splits_last_round;
  bool y_by_tma;
  bool weight_is_constant;  // may be read before the previous kernel has ended
};

/// The compile-time shape of a block.
template <typename T, int kRowTiles_, int kTokens_, int kBuffers_, bool kXByTma_ = true,
          bool kPromotes_ = false>
struct GemmShape {
  static constexpr int kRowTiles = kRowTiles_;  // tiles of 64 rows a warpgroup
  static constexpr int kTokens = kTokens_;
  static constexpr int kBuffers = kBuffers_;  // pieces of results that wait to be written
  static constexpr bool kXByTma = kXByTma_;
  // fp8 products are summed in fewer bits than float32 has: two stages at a time, then in float32.
  static constexpr bool kPromotes = kPromotes_;

  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * (1 + kWarpgroups);
  // 192 sums a thread leave few registers for anything else.
  static constexpr bool kIsFull = kRowTiles * kTokens / 2 >= 192;
  static constexpr int kLoaderRegisters = kIsFull ? 24 : 40;
  static constexpr int kRegisters = kIsFull ? 240 : 232;
  static constexpr int kWTiles = kRowTiles * kWarpgroups;
  static constexpr int kRows = 64 * kWTiles;
  static constexpr int kTile = Element<T>::Tile::kBytes;
  static constexpr int kWBytes = kTile * kWTiles;
  static constexpr int kXBytes = kTokens * 128;
  // A warpgroup turns its result around in pieces of 64 rows by kPiece tokens.
  static constexpr int kPiece = kTokens >= 192 ? 32 : 16;
  static constexpr int kPieces = kTokens / kPiece;
  static constexpr int kPieceBytes = kPiece * 128;
  static constexpr int kPiecesBytes = kBuffers * kWarpgroups * kPieceBytes;
  static constexpr int kScaleBytes = Epilogue<T>::kIsScaled ? kTokens * 4 : 0;  // of a warpgroup

  // As many stages as fit.
  static constexpr int kMostShared = 232448;
  static constexpr int kFixedBytes = 1024 + kWarpgroups * (kBuffers * kPieceBytes + kScaleBytes);
  static constexpr int kFitting = (kMostShared - kFixedBytes) / (kXBytes + kWBytes + 2 * 8);
  static constexpr int kStages = kFitting < 14 ? kFitting : 14;
  static constexpr int kSharedBytes = kFixedBytes + kStages * (kXBytes + kWBytes + 2 * 8);
  static_assert(kStages >= 4 && kBuffers % 2 == 0 && kTokens % kPiece == 0);

  /// Whether the sums of `split` parts of the inputs fit where the stages were.
  static constexpr bool can_split(int split) {
    return split == 1 || split * ((kPieces + split - 1) / split) * kPiece * kRows * 4 <=
                             kStages * (kXBytes + kWBytes);
  }
};

}  // namespace gossamer::cuda::sm90
