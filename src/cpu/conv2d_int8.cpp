// SPDX-License-Identifier: BSD-3-Clause
// Threads, blocking and table rows of *_conv2d_bitmask*_int8: float32 in and out, products of eight
// bits.
//
//   for each panel of output pixels, each block of filters (their sums stay in L2):
//     for each block of KC inputs (channels of a tap, tap by tap): copy the pixels they see from X
//       into a stage of floats, round that into a tile of units of two or four inputs (L1), add
//       every unit of the filters that keeps anything
//     sums times scales, to Y with bias, residual and activation
//
// Taps see the same pixels, so where there are several X is rounded first, an image at a scale, to
// words of as many neighbouring channels as a unit has; tiles are filled with words as float32's
// are with pixels, and have a quarter of them. X for a single tap, or with channels that make no
// whole words, is rounded where it is copied.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "cpu/bitmask_units.h"
#include "cpu/conv_driver.h"
#include "cpu/conv_rows.h"

namespace gossamer::cpu {
namespace {

/// Inputs that are copied before they are rounded.
constexpr std::int64_t kStageInputs = 64;

/// One instruction set: `sums` are those of units, `stores` of floats.
struct Variant {
  const KcsrFunctions& sums;
  const KcsrFunctions& stores;
  const ConvFunctions& steps;
  const ConvQuantizeFunctions& rounding;
  std::int64_t block;  ///< inputs of a tile
  int vectors;         ///< of the widest panel

  std::int64_t widest() const { return sums.vector_lanes * vectors; }
  std::int64_t stage_floats() const { return kStageInputs * widest(); }
  std::int64_t tile_floats() const { return block / rounding.inputs * widest(); }
};

/// X in words, one image after the other in X's memory format.
class ImageWords {
 public:
  /// Whether they pay and are whole.
  static bool fit(const Variant& variant, const Conv2dShape& s) {
    return s.kernel_h * s.kernel_w > 1 && s.in_channels % variant.rounding.inputs == 0;
  }

  /// The call for a reader to whom a word is a channel.
  static Conv2dArgs make(const Variant& variant, const Conv2dArgs& args) {
    const ImageWords words(variant, args);
    words.fill();
    const Conv2dShape& s = args.shape;
    const auto strides = args.x_strides.channels_last() ? ImageStrides::nhwc : ImageStrides::planar;
    Conv2dArgs seen = args;
    seen.shape.in_channels = words.channels_;
    seen.x = words.memory_;
    seen.x_strides = strides(words.channels_, s.height, s.width);
    return seen;
  }

 private:
  ImageWords(const Variant& variant, const Conv2dArgs& args)
      : rounding_(variant.rounding),
        args_(args),
        channels_(args.shape.in_channels / variant.rounding.inputs),
        memory_(reinterpret_cast<std::uint32_t*>(
            scratch(args.shape.images * channels_ * args.shape.height * args.shape.width,
                    Purpose::kShared))) {}

  /// Rows of one word of channels, or of all of a pixel's, threads side by side.
  void fill() const {
    constexpr std::int64_t kMinWordsPerThread = 8192;  // below, waking a thread costs more
    const Conv2dShape& s = args_.shape;
    const bool last = args_.x_strides.channels_last();
    const std::int64_t rows = s.images * (last ? 1 : channels_) * s.height;
    const std::int64_t row_words = s.width * (last ? channels_ : 1);
    const std::int64_t parts = std::clamp(rows * row_words / kMinWordsPerThread, std::int64_t{1},
                                          std::int64_t{std::max(args_.parallel.threads, 1)});
    parallel_for(args_.parallel, parts, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = rows * begin / parts; i < rows * end / parts; ++i) {
        last ? fill_pixels(i, memory_ + i * row_words) : fill_row(i, memory_ + i * row_words);
      }
    });
  }

  ConvWordsTask row_task(std::int64_t image, std::int64_t row) const {
    const float scale = args_.x_scale[image];
    ConvWordsTask task{};
    task.from = static_cast<const float*>(args_.x) + image * args_.x_strides.image +
                row * args_.x_strides.row;
    task.inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    return task;
  }

  void fill_row(std::int64_t index, std::uint32_t* to) const {
    const std::int64_t word = index / args_.shape.height;  // of channels, image by image
    ConvWordsTask task = row_task(word / channels_, index % args_.shape.height);
    task.from += word % channels_ * rounding_.inputs * args_.x_strides.channel;
    task.plane = args_.x_strides.channel;
    task.step = 1;
    task.count = args_.shape.width;
    task.to = to;
    rounding_.make_words(task);
  }

  void fill_pixels(std::int64_t index, std::uint32_t* to) const {
    ConvWordsTask task = row_task(index / args_.shape.height, index % args_.shape.height);
    task.plane = 1;
    task.step = rounding_.inputs;
    task.count = channels_;
    for (std::int64_t column = 0; column < args_.shape.width; ++column) {
      task.to = to + column * channels_;
      rounding_.make_words(task);
      task.from += args_.x_strides.column;
    }
  }

  const ConvQuantizeFunctions& rounding_;
  const Conv2dArgs& args_;
  std::int64_t channels_;  ///< words of a pixel
  std::uint32_t* memory_;
};

/// One call: as it was given, and with X as panels see it.
struct Call {
  const Conv2dArgs& args;
  const Conv2dArgs& seen;
  bool in_words;
};

/// The scratch memory of a thread.
struct Memory {
  float* stage;
  float* tile;
  float* sums;
  std::byte* index;

  Memory(const Variant& variant, std::int64_t index_bytes) {
    stage = scratch(variant.stage_floats() + variant.tile_floats() + kSumsFloats +
                    detail::ceil_div(index_bytes, 4));
    tile = stage + variant.stage_floats();
    sums = tile + variant.tile_floats();
    index = reinterpret_cast<std::byte*>(sums + kSumsFloats);
  }
};

/// Scales of a panel's pixels; 0 where there is none.
struct PanelScales {
  alignas(64) std::array<float, ConvPanel::kMaxLanes> scale{};
  alignas(64) std::array<float, ConvPanel::kMaxLanes> inverse{};

  PanelScales(const Conv2dArgs& args, const ConvPanel& panel) {
    for (const ConvPanel::ImageRun& run : panel.image_runs()) {
      const float x_scale = args.x_scale[run.image];
      std::fill_n(scale.begin() + run.lane, run.length, x_scale);
      std::fill_n(inverse.begin() + run.lane, run.length, x_scale > 0.0f ? 1.0f / x_scale : 0.0f);
    }
  }
};

/// The tile of inputs [begin, end).
void fill_tile(const Variant& variant, const ConvPanel& panel, const PanelScales& scales,
               bool in_words, std::int64_t lanes, std::int64_t begin, std::int64_t end,
               const Memory& memory) {
  const std::int64_t inputs = variant.rounding.inputs;
  auto* tile = reinterpret_cast<std::uint32_t*>(memory.tile);
  if (in_words) {
    panel.fill_by_tap(variant.steps, begin / inputs, end / inputs, memory.tile);
    if (variant.rounding.make_unsigned == nullptr) return;
    return variant.rounding.make_unsigned(tile, (end - begin) / inputs * lanes);
  }
  for (std::int64_t k = begin; k < end; k += kStageInputs) {
    const std::int64_t columns = std::min(kStageInputs, end - k);
    panel.fill_by_tap(variant.steps, k, k + columns, memory.stage);
    variant.rounding.quantize(
        {memory.stage, columns, lanes, scales.inverse.data(), tile + (k - begin) / inputs * lanes});
  }
}

/// All inputs of `rows` filters from `row` on, which are indexed, for one panel of pixels.
template <typename Source>
void run_panel(const Variant& variant, const Source& source, const Call& call, int width,
               const ConvPanel& panel, std::int64_t row, std::int64_t rows, const Memory& memory) {
  const Conv2dArgs& args = call.args;
  const std::int64_t lanes = variant.sums.vector_lanes * kPanelVectors[width];
  const PanelScales scales(args, panel);
  for (std::int64_t k = 0; k < source.block_count; ++k) {
    const std::int64_t begin = k * source.block;
    const std::int64_t end = std::min(begin + source.block, source.in);
    fill_tile(variant, panel, scales, call.in_words, lanes, begin, end, memory);
    KcsrAddTask task = source.add_task(k);
    task.rows = rows;
    task.tile = memory.tile;
    task.sums = memory.sums;
    task.first = k == 0;
    task.columns = end - begin;
    variant.sums.add[width](task);
  }
  const bool is_unsigned = variant.rounding.inputs == 4;
  variant.rounding.dequantize({memory.sums, rows, lanes, is_unsigned ? source.corrections : nullptr,
                               args.weight_scale + row, scales.scale.data()});
  FinishedFilters{args, panel, memory.sums, lanes, row, rows}.store(variant.stores, variant.steps);
}

template <typename Source>
void run_part(const Variant& variant, Source source, const Call& call, const SpmmPart& part) {
  ConvPanel panel(call.seen, variant.steps.vector_lanes);
  for (std::int64_t row = part.row_begin; row < part.row_end;) {
    const std::int64_t rows =
        source.rows_at_once(row, std::min(part.row_end - row, kSumsFloats / variant.widest()));
    const Memory memory(variant, source.scratch_bytes(row, rows));
    source.index(row, rows, memory.index);
    for (std::int64_t pixel = part.token_begin; pixel < part.token_end;) {
      const std::int64_t left = part.token_end - pixel;
      const int width = panel_width(left, variant.sums.vector_lanes, variant.vectors);
      const std::int64_t lanes = variant.sums.vector_lanes * kPanelVectors[width];
      panel.move_to(pixel, std::min(left, lanes), lanes);
      run_panel(variant, source, call, width, panel, row, rows, memory);
      pixel += panel.pixels();
    }
    row += rows;
  }
}

template <UnitFunction function>
void run(const Variant& variant, const Conv2dArgs& given) {
  const Conv2dArgs args = flattened(given);
  if (args.shape.pixels() <= 0 || args.weight.out() == 0) return;
  const bool in_words = ImageWords::fit(variant, args.shape);
  const Conv2dArgs seen = in_words ? ImageWords::make(variant, args) : args;
  const Call call{args, seen, in_words};
  const QuantizedBitmaskUnits<function> source(args.weight, 0, variant.block);
  // A kept value stands for part of a unit.
  const auto inputs = static_cast<double>(variant.rounding.inputs);
  const SpmmSplit split = cut_pixels(args, variant.sums.vector_lanes, variant.vectors,
                                     {.per_value = 1.4 / inputs,
                                      .per_vector = 0.7 / inputs,
                                      .per_element = copied_cycles(args) / inputs});
  run_conv_parts(args, split, args.shape.pixels(), variant.sums.vector_lanes * variant.vectors,
                 source, [&](const SpmmPart& part) { run_part(variant, source, call, part); });
}

template <const KcsrFunctions& sums, const KcsrFunctions& stores, const ConvFunctions& steps,
          const ConvQuantizeFunctions& rounding, UnitFunction function, int block, int vectors>
Conv2dKernel row(std::string_view name, std::uint32_t needs) {
  Conv2dKernel kernel;
  kernel.name = name;
  kernel.needs = needs;
  kernel.layout = Layout::kBitmask;
  kernel.dtype = DType::kInt8;
  kernel.lanes = static_cast<int>(sums.vector_lanes);
  kernel.run = [](const Conv2dArgs& args) {
    run<function>({sums, stores, steps, rounding, block, vectors}, args);
  };
  return kernel;
}

}  // namespace

std::vector<Conv2dKernel> conv2d_int8_rows() {
  std::vector<Conv2dKernel> rows{
      row<generic_spmm_int8_pairs, generic_spmm_f32, generic_conv2d_f32, generic_conv2d_pairs,
          generic_bitmask_int8_pairs, 256, 8>("generic_conv2d_bitmask256_int8", kIsaGeneric)};
#if defined(__x86_64__)
  constexpr std::uint32_t kVnni = kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni;
  rows.push_back(row<avx2_spmm_int8_pairs, avx2_spmm_f32, avx2_conv2d_f32, avx2_conv2d_pairs,
                     avx2_bitmask_int8_pairs, 256, 8>("avx2_conv2d_bitmask256_int8_nv8", kIsaAvx2));
  rows.push_back(
      row<avx512vnni_spmm_quads, avx512_spmm_f32, avx512_conv2d_f32, avx512_conv2d_quads,
          avx512vnni_bitmask_quads, 256, 8>("avx512vnni_conv2d_bitmask256_int8_nv8", kVnni));
  rows.push_back(
      row<avx512vnni_spmm_quads, avx512_spmm_f32, avx512_conv2d_f32, avx512_conv2d_quads,
          avx512vnni_bitmask_quads, 512, 4>("avx512vnni_conv2d_bitmask512_int8_nv4", kVnni));
#endif
  return rows;
}

}  // namespace gossamer::cpu
