// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/sm90_gemm_shape.cuh"

// The way of results from the tensor core's fragments to Y.
namespace gossamer::cuda::sm90 {

/// Pieces of the tile that this block finishes.
struct PieceRange {
  int first;
  int end;
};

/// What a warpgroup writes through: results lie with outputs along the rows of the fragments, Y has
/// them along its columns, so they are turned around in shared memory, buffers in turn.
template <typename T, typename Shape>
struct PieceWriter {
  const GemmParams<T>& p;
  const CUtensorMap* y_map;
  const unsigned char* shared;
  std::uint32_t pieces;  // of this warpgroup
  int group;             // which of the warpgroups
  int thread;            // of its 128
  std::uint32_t corner;  // where this thread's address lies in a piece
  int buffer = 0;        // the next one
  std::uint32_t piece = 0;

  __device__ __forceinline__ PieceWriter(const GemmParams<T>& params, const CUtensorMap* map,
                                         const unsigned char* all_shared, std::uint32_t my_pieces,
                                         int my_group, int my_thread)
      : p(params),
        y_map(map),
        shared(all_shared),
        pieces(my_pieces),
        group(my_group),
        thread(my_thread) {
    const int matrix = thread % 32 / 8;
    const int token = thread % 8;
    const int chunk = thread / 32 * 2 + matrix % 2;
    corner = (matrix / 2 * 8 + token) * 128 + (chunk ^ token) * 16;
  }

  /// Waits until the next `kCount` buffers may be written again; as many are sent with each
  /// commit(), and kBuffers is a multiple of it.
  template <int kCount>
  __device__ __forceinline__ void begin() const {
    if (thread == 0) tensor_store_wait_read<Shape::kBuffers / kCount - 1>();
    named_barrier(group + 1, 128);
  }
  /// Turns to the next buffer.
  __device__ __forceinline__ void next() {
    piece = pieces + buffer * Shape::kPieceBytes;
    buffer = buffer + 1 == Shape::kBuffers ? 0 : buffer + 1;
  }
  /// 16 tokens from octet `j` of the piece on.
  __device__ __forceinline__ void put(int j, const std::uint32_t (&pairs)[4]) const {
    store_matrices_transposed(piece + corner + j * 1024, pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  /// What was put is complete; sends follow.
  __device__ __forceinline__ void end() const {
    if (p.y_by_tma) fence_async_proxy();
    named_barrier(group + 1, 128);
  }
  /// Ends a group of sends; also one that had nothing to send, since begin() counts them.
  __device__ __forceinline__ void commit() const {
    if (thread == 0) tensor_store_commit();
  }
  /// Sends a piece, whose first result is (first_row, first_token), to Y.
  __device__ __forceinline__ void send(std::uint32_t from_piece, int first_row,
                                       int first_token) const {
    if (p.y_by_tma) {
      if (thread == 0 && first_row < p.epilogue.out && first_token < p.epilogue.tokens) {
        tensor_store(y_map, from_piece, first_row, first_token);
      }
      return;
    }
    const auto* from =
        reinterpret_cast<const unsigned short*>(shared + (from_piece - shared_address(shared)));
    auto* to = static_cast<unsigned short*>(p.y);
    for (int e = thread; e < Shape::kPiece * 64; e += 128) {
      const int t = e / 64;
      const int r = e % 64;
      if (first_token + t < p.epilogue.tokens && first_row + r < p.epilogue.out) {
        to[(first_token + t) * p.y_stride + first_row + r] =
            from[t * 64 + ((r / 8) ^ (t & 7)) * 8 + r % 8];
      }
    }
  }
};

}  // namespace gossamer::cuda::sm90
