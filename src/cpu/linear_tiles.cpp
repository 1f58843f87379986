// SPDX-License-Identifier: BSD-3-Clause
// Table rows of AMX. Where there are no tile registers the tests run them on a model of them.
//
// With all inputs in one tile of X sums stay in their registers, and X comes
// from L2; with fewer it comes from L1, and sums are loaded and stored in between.
//
// *_overlap expand one batch of tiles while the one before it is multiplied.
//
// amx_linear_bsr_* take X as the left operand (cpu/tile_blocks.h).
#include "cpu/registration.h"
#include "cpu/tile_blocks.h"
#include "cpu/tile_rows.h"

namespace gossamer::cpu {

void register_linear_tiles() {
#if defined(__x86_64__)
  using enum DType;
  constexpr std::uint32_t kBf16 = kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Bf16 | kIsaAmxBf16;
  constexpr std::uint32_t kInt8Sets = kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni | kIsaAmxInt8;
  constexpr TileSource::Count count = amx_count_kept;
  add_bitmask_tile_row<amx_bitmask_bf16, count, 0, 3>("amx_linear_bitmask_bf16", kBf16, kBFloat16);
  add_bitmask_tile_row<amx_bitmask_bf16, count, 128, 8>("amx_spmm_bitmask128_bf16_nv8", kBf16,
                                                        kBFloat16);
  add_bitmask_tile_row<amx_bitmask_bf16, count, 256, 4>("amx_spmm_bitmask256_bf16_nv4", kBf16,
                                                        kBFloat16);
  add_bitmask_tile_row<amx_bitmask_int8, count, 0, 3>("amx_linear_bitmask_int8", kInt8Sets, kInt8);
  add_bitmask_tile_row<amx_bitmask_int8, count, 256, 8>("amx_spmm_bitmask256_int8_nv8", kInt8Sets,
                                                        kInt8);
  add_bitmask_tile_row<amx_bitmask_int8, count, 512, 4>("amx_spmm_bitmask512_int8_nv4", kInt8Sets,
                                                        kInt8);
  add_bitmask_tile_row<amx_overlapped_bf16, count, 0, 3>("amx_linear_bitmask_bf16_overlap", kBf16,
                                                         kBFloat16);
  add_bitmask_tile_row<amx_overlapped_int8, count, 0, 3>("amx_linear_bitmask_int8_overlap",
                                                         kInt8Sets, kInt8);

  add_block_tile_row<amx_blocks_bf16, 0, 6>("amx_spmm_bsr_bf16", kBf16, kBFloat16);
  add_block_tile_row<amx_blocks_bf16, 256, 4>("amx_spmm_bsr256_bf16", kBf16, kBFloat16);
  add_block_tile_row<amx_blocks_int8, 0, 6>("amx_spmm_bsr_int8", kInt8Sets, kInt8);
  add_block_tile_row<amx_blocks_int8, 512, 4>("amx_spmm_bsr512_int8", kInt8Sets, kInt8);

  add_tile_blocks_row<amx_linear_bsr_bf16>("amx_linear_bsr_bf16", kBf16, kBFloat16);
  add_tile_blocks_row<amx_linear_bsr_int8>("amx_linear_bsr_int8", kInt8Sets, kInt8);
#endif
}

}  // namespace gossamer::cpu
