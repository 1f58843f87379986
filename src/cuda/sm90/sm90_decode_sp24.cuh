// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/x_tile.cuh"

// Y = act(X·Wᵀ + bias + residual) for few tokens, W 2:4.
//
//            inputs, divided among the blocks of a cluster
//           ┌───────┬───────┬───────┬───────┐
//   64 rows │ b0    │ b1    │ b2    │ b3    │ cluster 0       X slice of a block: loaded once, kept
//           ├───────┼───────┼───────┼───────┤                 W: one bulk copy per two tiles
//           │ b0    │ b1    │ b2    │ b3    │ cluster 1
//           └───────┴───────┴───────┴───────┘
//
// The bound is the weight's bytes, 9/16 of the dense ones (5/8 with 8 bits), over the memory's
// bandwidth. Up to 16 tokens in bfloat16 take 3.8 µs and these bytes at 4.32 TB/s (H200,
// 2026-11-30): 28672×8192 with 8 tokens 62 µs, where cuBLAS takes 107. A cluster
// walks over row tiles; each of its blocks multiplies its part of the inputs, and the partial sums
// meet in shared memory of the cluster: every block sends each peer the slice of the tile that this
// peer finishes, and adds what it receives in the order of ranks. So there is no workspace, no
// counter to reset, and the result does not depend on timing. Sums of one tile are finished while
// the next one is multiplied.
//
// The weight is constant, so its first stages are asked for before the previous kernel of the
// stream has ended (programmatic dependent launch); X is waited for.
namespace gossamer::cuda::sm90 {

/// What both sides of a launch know.
template <typename T>
struct DecodeParams {
  const unsigned char* tiles;
  const T* x;  // read where x_by_tma is false
  void* y;
  std::int64_t x_stride;
  std::int64_t y_stride;
  Epilogue<T> epilogue;
  int in;
  int row_tiles;
  int input_tiles;
  int stages;
  bool x_by_tma;
  bool x_resident;          // the block's part of X stays in shared memory
  bool weight_is_constant;  // may be read before the previous kernel has ended
};

template <typename T>
struct DecodeShape {
  static constexpr int kThreads = 256;  // a warpgroup that multiplies, one that loads
  static constexpr int kUnits = 2;      // tiles in a stage
  static constexpr int kTile = Element<T>::Tile::kBytes;
  static constexpr int kStage = kUnits * kTile;

  static constexpr int x_tile(int tokens) { return tokens * 128; }
  static constexpr int received(int tokens) { return 64 * tokens * 4; }
  /// Shared memory of a block: two buffers for partial sums, X, weights, barriers.
  static constexpr int shared_bytes(int tokens, int stages, int x_tiles) {
    return 1024 + 2 * received(tokens) + x_tiles * x_tile(tokens) + stages * kStage +
           (2 * stages + 2) * 8;
  }
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(DecodeShape<T>::kThreads, 2)
    decode_sp24(const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ DecodeParams<T> p) {
  using Shape = DecodeShape<T>;
  using Sum = typename Element<T>::Sum;
  constexpr int kInputs = Element<T>::kInputs;
  constexpr int kReceived = Shape::received(kTokens);
  constexpr int kXTile = Shape::x_tile(kTokens);
  constexpr int kOctets = kTokens / 8;
  constexpr int kLoaders = 128;

  extern __shared__ unsigned char raw[];
  unsigned char* const shared =
      reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) & ~1023ull);
  const int rank = cluster_rank();
  const int split = cluster_size();
  const int cluster = static_cast<int>(blockIdx.x) / split;
  const int clusters = static_cast<int>(gridDim.x) / split;

  // This block's part of the inputs, in tiles and in stages.
  const int first = static_cast<int>(static_cast<long long>(p.input_tiles) * rank / split);
  const int count =
      static_cast<int>(static_cast<long long>(p.input_tiles) * (rank + 1) / split) - first;
  const int steps = (count + Shape::kUnits - 1) / Shape::kUnits;
  const int my_tiles = (p.row_tiles - cluster + clusters - 1) / clusters;
  const int total = my_tiles * steps;
  const int x_tiles = p.x_resident ? (p.input_tiles + split - 1) / split : p.stages * Shape::kUnits;

  const std::uint32_t received = shared_address(shared);
  const std::uint32_t x_tile = received + 2 * kReceived;
  const std::uint32_t weights = x_tile + x_tiles * kXTile;
  const std::uint32_t full = weights + p.stages * Shape::kStage;
  const std::uint32_t empty = full + p.stages * 8;
  const std::uint32_t sums = empty + p.stages * 8;

  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < p.stages; ++i) {
      barrier_init(full + i * 8, p.x_by_tma ? 2 : 1 + kLoaders / 32);
      barrier_init(empty + i * 8, 4);  // one arrival a warp: each reads metadata of its own
    }
    barrier_init(sums, 1);
    barrier_init(sums + 8, 1);
    barrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();
  launch_dependents();

  if (thread >= 128) {
    // --- Loads ---
    const int loader = thread - 128;
    const bool leader = loader == 0;
    const std::uint64_t once = evict_first_policy();
    // Divisions would cost this one thread more than the rest of its work: it counts instead.
    struct Cursor {
      int stage = 0;
      int step = 0;
      std::uint32_t parity = 1;
      bool is_first_tile = true;
      const unsigned char* from;
    };
    const long long to_next_tile =
        (static_cast<long long>(clusters) * p.input_tiles - count) * Shape::kTile;
    const auto advance = [&](Cursor& at, int units) {
      at.from += units * Shape::kTile;
      if (++at.step == steps) {
        at.step = 0;
        at.is_first_tile = false;
        at.from += to_next_tile;
      }
      if (++at.stage == p.stages) {
        at.stage = 0;
        at.parity ^= 1;
      }
    };
    const auto units_of = [&](const Cursor& at) {
      return min(Shape::kUnits, count - at.step * Shape::kUnits);
    };
    const auto load_weights = [&](const Cursor& at, int units) {
      const std::uint32_t barrier = full + at.stage * 8;
      barrier_arrive_expect(barrier, units * Shape::kTile);
      bulk_load(weights + at.stage * Shape::kStage, at.from, units * Shape::kTile, barrier, once);
    };
    const auto load_x = [&](const Cursor& at, int units) {
      const std::uint32_t barrier = full + at.stage * 8;
      const bool wanted = !p.x_resident || at.is_first_tile;
      const int slot = (p.x_resident ? at.step : at.stage) * Shape::kUnits;
      const int input = (first + at.step * Shape::kUnits) * kInputs;
      if (p.x_by_tma) {
        if (!leader) return;
        barrier_arrive_expect(barrier, wanted ? units * kXTile : 0);
        if (!wanted) return;
        for (int u = 0; u < units; ++u) {
          tensor_load(x_tile + (slot + u) * kXTile, &x_map, input + u * kInputs, 0, barrier);
        }
        return;
      }
      if (wanted) {
        for (int u = 0; u < units; ++u) {
          fill_x_tile<T, kTokens>(shared + 2 * kReceived + (slot + u) * kXTile, p.x, p.x_stride, 0,
                                  input + u * kInputs, p.epilogue.tokens, p.in, loader, kLoaders);
        }
        fence_async_proxy();
      }
      __syncwarp();
      if (loader % 32 == 0) barrier_arrive(barrier);
    };

    if (!p.x_by_tma || loader < 32) {
      const int ahead = min(p.stages, total);
      Cursor start;
      start.from =
          p.tiles + (static_cast<long long>(cluster) * p.input_tiles + first) * Shape::kTile;
      Cursor at = start;
      if (!p.weight_is_constant) wait_for_predecessors();
      for (int i = 0; i < ahead; ++i) {
        const int units = units_of(at);
        if (leader) load_weights(at, units);
        advance(at, units);
      }
      wait_for_predecessors();
      at = start;
      for (int i = 0; i < ahead; ++i) {
        const int units = units_of(at);
        load_x(at, units);
        advance(at, units);
      }
      // The parity of a stage's first use says "free"; here each is used again.
      for (int i = ahead; i < total; ++i) {
        const int units = units_of(at);
        barrier_wait(empty + at.stage * 8, at.parity);
        if (leader) load_weights(at, units);
        load_x(at, units);
        advance(at, units);
      }
    }
    __syncwarp();
    cluster_wait();
    return;
  }

  // --- Products ---
  // Sixteen bytes of partial sums: octet of tokens j and thread t are entry 128·j + t; the entries
  // are divided evenly among the blocks of the cluster.
  const int share = kOctets * 128 / split;
  // fp8 products are summed in fewer bits than float32 has: a stage at a time, then in float32.
  constexpr bool kPromotes = __is_same(T, __nv_fp8_e4m3);
  Sum d[kTokens / 2];
  const auto send = [&](int n) {
    const int buffer = n & 1;
    if (split > 1 && thread == 0) barrier_arrive_expect(sums + buffer * 8, kReceived);
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      const int entry = j * 128 + thread;
      const int owner = entry / share;
      const std::uint32_t to =
          received + buffer * kReceived + (rank * share + entry - owner * share) * 16;
      const float4 part = make_float4(to_bits(d[4 * j]), to_bits(d[4 * j + 1]),
                                      to_bits(d[4 * j + 2]), to_bits(d[4 * j + 3]));
      if (split == 1) {
        store_shared_float4(to, part);  // for this thread itself; st.async is for a peer
      } else {
        store_async(peer_address(to, owner), part, peer_address(sums + buffer * 8, owner));
      }
    }
  };
  const auto finish = [&](int n) {
    const int buffer = n & 1;
    if (split > 1) barrier_wait(sums + buffer * 8, (n >> 1) & 1);
    const int tile_row = (cluster + n * clusters) * 64;
#pragma unroll 1
    for (int i = thread; i < share; i += 128) {
      const std::uint32_t from = received + buffer * kReceived + i * 16;
      float4 sum = load_shared_float4(from);
      for (int source = 1; source < split; ++source) {
        sum = add_bits<Sum>(sum, load_shared_float4(from + source * share * 16));
      }
      const int entry = rank * share + i;
      const int lane = entry % 32;
      const int row = tile_row + entry % 128 / 32 * 16 + lane / 4;
      const int token = entry / 128 * 8 + lane % 4 * 2;
      const Sum sums_of_rows[4] = {from_bits<Sum>(sum.x), from_bits<Sum>(sum.y),
                                   from_bits<Sum>(sum.z), from_bits<Sum>(sum.w)};
      float values[4];  // two tokens of `row`, two of `row` + 8
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = row + 8 * h;
        const float bias = p.epilogue.bias_of(r);
        const float scale = p.epilogue.weight_scale_of(r);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& y = values[2 * h + c];
          y = static_cast<float>(sums_of_rows[2 * h + c]);
          if constexpr (Epilogue<T>::kIsScaled) y *= scale * p.epilogue.x_scale_of(token + c);
          y += bias;
          if (p.epilogue.residual != nullptr) y += p.epilogue.residual_of(token + c, r);
        }
      }
      p.epilogue.activate(values);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int r = row + v / 2 * 8;
        const int t = token + v % 2;
        if (r < p.epilogue.out && t < p.epilogue.tokens) {
          p.epilogue.store(p.y, t * p.y_stride + r, values[v]);
        }
      }
    }
  };

  cluster_wait();  // peers' barriers are initialised
  wait_for_predecessors();
  int stage = 0;
  std::uint32_t parity = 0;
  for (int n = 0; n < my_tiles; ++n) {
    [[maybe_unused]] Sum total_of_stages[kTokens / 2] = {};
    for (int step = 0; step < steps; ++step) {
      const int units = min(Shape::kUnits, count - step * Shape::kUnits);
      const std::uint32_t a = weights + stage * Shape::kStage;
      const std::uint32_t b = x_tile + (p.x_resident ? step : stage) * Shape::kUnits * kXTile;
      barrier_wait(full + stage * 8, parity);
      Metadata<T> meta[Shape::kUnits];
#pragma unroll
      for (int u = 0; u < Shape::kUnits; ++u) {
        meta[u] = load_metadata<T>(a + u * Shape::kTile, thread);
      }
      wgmma_fence();
#pragma unroll
      for (int u = 0; u < Shape::kUnits; ++u) {
        if (u < units) {
          multiply_tile<T>(d, a_descriptor(a + u * Shape::kTile), b_descriptor(b + u * kXTile),
                           meta[u], (kPromotes ? 0 : step) + u > 0);
        }
      }
      wgmma_commit();
      wgmma_wait<0>();
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(empty + stage * 8);
      if constexpr (kPromotes) {
        settle(d);
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) total_of_stages[i] += d[i];
      }
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    if constexpr (kPromotes) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) d[i] = total_of_stages[i];
    } else {
      settle(d);
    }
    if (n > 0) {
      finish(n - 1);
      // A peer that has all sums of tile n may overwrite the buffer of tile n - 1.
      named_barrier(1, 128);
    }
    send(n);
  }
  if (my_tiles > 0) finish(my_tiles - 1);
}

}  // namespace gossamer::cuda::sm90
