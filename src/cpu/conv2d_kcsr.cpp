// SPDX-License-Identifier: BSD-3-Clause
// Threads, blocking and table rows of *_conv2d_kcsr*_f32: a convolution as K-blocked CSR over a
// tile of shifted views.
//
//   for each panel of output pixels, each block of filters (their sums stay in L2):
//     for each block of KC inputs (a few channels, all their taps): copy the pixels that those taps
//     see from X
//       into a tile (L1), add every kept value of the filters
//     store the sums to Y, with residual and activation
//
// X is read where it lies: a tile holds KC × panel floats, and no matrix of patches is ever made.
// Inputs and outputs are planar (NCHW) or channels-last; only the copy and the store differ.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/layouts.h"
#include "cpu/conv2d_bands.h"
#include "cpu/conv_bands_task.h"
#include "cpu/conv_driver.h"
#include "cpu/conv_panel.h"
#include "cpu/conv_rows.h"
#include "cpu/conv_task.h"
#include "cpu/kcsr_source.h"
#include "cpu/spmm_driver.h"
#include "gossamer/conv.h"

namespace gossamer::cpu {
namespace {

/// What a row takes of an instruction set.
struct Functions {
  const KcsrFunctions& sums;
  const ConvFunctions& steps;
  const ConvBandsFunctions& bands;
};

/// Those, and the widest panels: of neighbouring pixels and of bands.
struct Variant {
  const KcsrFunctions& sums;
  const ConvFunctions& steps;
  const ConvBandsFunctions& bands;
  int vectors;
  int band_vectors;
};

/// All inputs of `rows` filters from `row` on for one panel of pixels.
void run_panel(const Variant& variant, const KcsrSource& source, const Conv2dArgs& args, int width,
               const ConvPanel& panel, std::int64_t row, std::int64_t rows, float* tile,
               float* sums) {
  const std::int64_t lanes = variant.sums.vector_lanes * kPanelVectors[width];
  for (std::int64_t k = 0; k < source.block_count; ++k) {
    const std::int64_t begin = k * source.block;
    const std::int64_t end = std::min(begin + source.block, source.in);
    panel.fill(variant.steps, begin, end, tile);
    KcsrAddTask task = source.add_task(k);
    task.rows = rows;
    task.tile = tile;
    task.sums = sums;
    task.first = k == 0;
    task.columns = end - begin;
    variant.sums.add[width](task);
  }
  FinishedFilters{args, panel, sums, lanes, row, rows}.store(variant.sums, variant.steps);
}

void run_part(const Variant& variant, KcsrSource source, const Conv2dArgs& args,
              const SpmmPart& part) {
  const std::int64_t widest = variant.sums.vector_lanes * variant.vectors;
  const std::int64_t tile_floats = source.block * widest;
  float* tile = scratch(tile_floats + kSumsFloats);
  float* sums = tile + tile_floats;
  ConvPanel panel(args, variant.steps.vector_lanes);
  for (std::int64_t row = part.row_begin; row < part.row_end;) {
    const std::int64_t rows = std::min(part.row_end - row, kSumsFloats / widest);
    source.index(row, rows, nullptr);
    for (std::int64_t pixel = part.token_begin; pixel < part.token_end;) {
      const std::int64_t left = part.token_end - pixel;
      const int width = panel_width(left, variant.sums.vector_lanes, variant.vectors);
      const std::int64_t lanes = variant.sums.vector_lanes * kPanelVectors[width];
      panel.move_to(pixel, std::min(left, lanes), lanes);
      run_panel(variant, source, args, width, panel, row, rows, tile, sums);
      pixel += panel.pixels();
    }
    row += rows;
  }
}

void run(const Variant& variant, const Conv2dArgs& given) {
  const auto bands = find_bands(given, variant.bands, variant.band_vectors, variant.vectors);
  if (bands) return run_conv2d_bands(variant.sums, variant.steps, variant.bands, *bands, given);
  const Conv2dArgs args = flattened(given);
  const KcsrSource source(args.weight, 0);
  const SpmmSplit split = cut_pixels(args, variant.sums.vector_lanes, variant.vectors,
                                     {.per_element = copied_cycles(args)});
  run_conv_parts(args, split, args.shape.pixels(), variant.sums.vector_lanes * variant.vectors,
                 source, [&](const SpmmPart& part) { run_part(variant, source, args, part); });
}

template <const Functions& functions, Layout layout, int vectors, int band_vectors>
Conv2dKernel row(std::string_view name, std::uint32_t needs) {
  Conv2dKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = layout;
  kernel.dtype = DType::kFloat32;
  kernel.lanes = static_cast<int>(functions.sums.vector_lanes);
  kernel.run = [](const Conv2dArgs& args) {
    run({functions.sums, functions.steps, functions.bands, vectors, band_vectors}, args);
  };
  return kernel;
}

constexpr Functions kGeneric{generic_spmm_f32, generic_conv2d_f32, generic_conv2d_bands};
#if defined(__x86_64__)
constexpr Functions kAvx2{avx2_spmm_f32, avx2_conv2d_f32, avx2_conv2d_bands};
constexpr Functions kAvx512{avx512_spmm_f32, avx512_conv2d_f32, avx512_conv2d_bands};
#endif

}  // namespace

std::vector<Conv2dKernel> conv2d_kcsr_rows() {
  using enum Layout;
  std::vector<Conv2dKernel> rows{
      row<kGeneric, kKcsr64, 8, 8>("generic_conv2d_kcsr64_f32", kIsaGeneric),
      row<kGeneric, kKcsr128, 8, 8>("generic_conv2d_kcsr128_f32", kIsaGeneric),
      row<kGeneric, kKcsr256, 8, 8>("generic_conv2d_kcsr256_f32", kIsaGeneric)};
#if defined(__x86_64__)
  const auto add = [&](const Conv2dKernel& kernel) { rows.push_back(kernel); };
  add(row<kAvx2, kKcsr128, 8, 14>("avx2_conv2d_kcsr128_f32_nv8", kIsaAvx2));
  add(row<kAvx2, kKcsr256, 8, 14>("avx2_conv2d_kcsr256_f32_nv8", kIsaAvx2));
  add(row<kAvx2, kKcsr256, 4, 8>("avx2_conv2d_kcsr256_f32_nv4", kIsaAvx2));
  add(row<kAvx512, kKcsr64, 8, 16>("avx512_conv2d_kcsr64_f32_nv8", kIsaAvx512));
  add(row<kAvx512, kKcsr128, 8, 16>("avx512_conv2d_kcsr128_f32_nv8", kIsaAvx512));
  add(row<kAvx512, kKcsr128, 4, 8>("avx512_conv2d_kcsr128_f32_nv4", kIsaAvx512));
  add(row<kAvx512, kKcsr256, 4, 8>("avx512_conv2d_kcsr256_f32_nv4", kIsaAvx512));
#endif
  return rows;
}

}  // namespace gossamer::cpu
