// SPDX-License-Identifier: BSD-3-Clause
#include "core/layouts.h"

#include <initializer_list>
#include <limits>
#include <utility>

#include "core/fail.h"
#include "core/nm24_tile.h"
#include "core/pattern_check.h"

namespace gossamer {
namespace {

constexpr std::array<std::pair<Layout, std::string_view>, 12> kNames{
    {{Layout::kNm, "nm"},
     {Layout::kBitmask, "bitmask"},
     {Layout::kBsr, "bsr"},
     {Layout::kFanIn, "fanin"},
     {Layout::kKcsr64, "kcsr64"},
     {Layout::kKcsr128, "kcsr128"},
     {Layout::kKcsr256, "kcsr256"},
     {Layout::kRowPairs64, "rowpairs64"},
     {Layout::kRowPairs128, "rowpairs128"},
     {Layout::kRowQuads512, "rowquads512"},
     {Layout::kNm24Pairs, "nm24_pairs"},
     {Layout::kNm24Tiles, "nm24_tiles"}}};

}  // namespace

std::string_view layout_name(Layout layout) {
  for (const auto& [number, name] : kNames) {
    if (number == layout) return name;
  }
  detail::fail(ErrorCode::kInvalidArgument, "layout number {} is not known", int(layout));
}

std::optional<Layout> parse_layout(std::string_view name) {
  for (const auto& [number, known] : kNames) {
    if (known == name) return number;
  }
  return std::nullopt;
}

bool is_format(Layout layout) {
  return layout == Layout::kNm || layout == Layout::kBitmask || layout == Layout::kBsr ||
         layout == Layout::kFanIn;
}

Layout format_for(const Pattern& pattern) {
  switch (pattern.kind) {
    case Pattern::Kind::kNm:
      return Layout::kNm;
    case Pattern::Kind::kBlock:
      return Layout::kBsr;
    case Pattern::Kind::kFanIn:
      return Layout::kFanIn;
    case Pattern::Kind::kUnstructured:
    case Pattern::Kind::kVnm:
      break;
  }
  return Layout::kBitmask;
}

std::int64_t packed_size_bytes(Layout layout, const Pattern& pattern, DType dtype,
                               std::int64_t batch, std::int64_t out, std::int64_t in,
                               std::int64_t kept) {
  const FormatInfo info{layout, dtype, pattern, batch, out, in, false, 0, 0};
  return detail::layout_spec(info, kept).total_bytes;
}

namespace detail {
namespace {

std::int64_t checked_mul(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) {
    fail(ErrorCode::kUnsupported, "a packed weight of {} times {} bytes or elements is too large",
         a, b);
  }
  return result;
}

std::int64_t checked_add(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) {
    fail(ErrorCode::kUnsupported, "a packed weight of {} and {} bytes is too large", a, b);
  }
  return result;
}

/// Appends arrays to a spec and keeps count of the bytes.
class SpecBuilder {
 public:
  explicit SpecBuilder(std::int64_t batch) : batch_(batch) {
    spec_.total_bytes = static_cast<std::int64_t>(sizeof(PackedHeader));
  }

  /// An array of `batch` equal parts.
  void per_batch(std::string_view name, DType dtype, std::initializer_list<std::int64_t> shape) {
    add(name, dtype, shape, batch_ > 1);
  }

  /// An array over all batches.
  void over_all(std::string_view name, DType dtype, std::initializer_list<std::int64_t> shape) {
    add(name, dtype, shape, false);
  }

  LayoutSpec finish(std::int64_t kept) {
    spec_.kept = kept;
    return spec_;
  }

 private:
  void add(std::string_view name, DType dtype, std::initializer_list<std::int64_t> shape,
           bool batched) {
    ArraySpec& array = spec_.arrays[static_cast<std::size_t>(spec_.count++)];
    array.name = name;
    array.dtype = dtype;
    array.bytes = dtype_bytes(dtype);
    const auto append = [&](std::int64_t size) {
      array.shape[static_cast<std::size_t>(array.rank++)] = size;
      array.bytes = checked_mul(array.bytes, size);
    };
    if (batched) append(batch_);
    for (const std::int64_t size : shape) append(size);
    array.offset = spec_.total_bytes;
    const std::int64_t end = checked_add(array.offset, checked_add(array.bytes, kArraySlack));
    spec_.total_bytes = checked_add(end, kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
  }

  std::int64_t batch_;
  LayoutSpec spec_;
};

void check_dims(const FormatInfo& info, std::int64_t kept) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  if (info.batch < 1 || info.batch > kLargest || info.out < 0 || info.out > kLargest ||
      info.in < 0 || info.in > kLargest) {
    fail(
        ErrorCode::kInvalidArgument,
        "a weight of batch {}, out {}, in {} cannot be packed; accepted are batch 1 to {}, out and "
        "in 0 to {}",
        info.batch, info.out, info.in, kLargest, kLargest);
  }
  if (!is_weight_dtype(info.dtype)) {
    fail(ErrorCode::kInvalidArgument,
         "dtype {} holds no weights; accepted are float64, float32, float16, bfloat16, "
         "float8_e4m3fn and int8; convert the values to one of them first",
         dtype_name(info.dtype));
  }
  if (kept < 0) fail(ErrorCode::kInvalidArgument, "the number of kept positions is {}", kept);
}

void check_kept(std::int64_t kept, std::int64_t most) {
  if (kept > most) {
    fail(ErrorCode::kInvalidArgument, "{} kept positions, the weight has {}", kept, most);
  }
}

LayoutSpec nm_spec(const FormatInfo& info) {
  const NmShape s = nm_shape(info.pattern, info.in);
  SpecBuilder b(info.batch);
  b.per_batch("values", info.dtype, {info.out, s.groups * s.n});
  b.per_batch("indices", DType::kUInt8, {info.out, s.index_bytes});
  return b.finish(checked_mul(checked_mul(info.batch, info.out), s.groups * s.n));
}

LayoutSpec bitmask_spec(const FormatInfo& info, std::int64_t kept) {
  check_kept(kept, checked_mul(info.batch, info.out * info.in));
  SpecBuilder b(info.batch);
  b.per_batch("bitmask", DType::kUInt8, {info.out, ceil_div(info.in, 8)});
  b.over_all("values", info.dtype, {kept});
  b.per_batch("row_offsets", DType::kInt64, {info.out + 1});
  return b.finish(kept);
}

LayoutSpec bsr_spec(const FormatInfo& info, std::int64_t kept) {
  const std::int64_t rows = info.pattern.block_rows;
  const std::int64_t cols = info.pattern.block_cols;
  if (kept % (rows * cols) != 0) {
    fail(ErrorCode::kInvalidArgument, "{} kept positions are no whole number of {}x{} blocks", kept,
         rows, cols);
  }
  const std::int64_t blocks = kept / (rows * cols);
  const std::int64_t block_rows = ceil_div(info.out, rows);
  check_kept(blocks, checked_mul(info.batch, block_rows * ceil_div(info.in, cols)));
  SpecBuilder b(info.batch);
  b.per_batch("block_row_offsets", DType::kInt64, {block_rows + 1});
  b.over_all("block_cols", DType::kInt32, {blocks});
  b.over_all("values", info.dtype, {blocks, rows, cols});
  return b.finish(kept);
}

LayoutSpec fan_in_spec(const FormatInfo& info) {
  const std::int64_t count = fan_in_count(info.pattern, info.in);
  SpecBuilder b(info.batch);
  b.per_batch("values", info.dtype, {info.out, count});
  b.per_batch("cols", fan_in_col_dtype(info.in), {info.out, count});
  return b.finish(checked_mul(checked_mul(info.batch, info.out), count));
}

LayoutSpec kcsr_spec(const FormatInfo& info, std::int64_t kept) {
  check_kept(kept, checked_mul(info.batch, info.out * info.in));
  const std::int64_t blocks = ceil_div(info.in, kcsr_block(info.format));
  SpecBuilder b(info.batch);
  b.over_all("values", info.dtype, {kept});
  b.over_all("cols", DType::kUInt8, {kept});
  b.per_batch("segment_offsets", DType::kUInt32, {blocks, info.out + 1});
  b.per_batch("block_offsets", DType::kInt64, {blocks + 1});
  return b.finish(kept);
}

/// The most units in which `kept` positions can lie.
std::int64_t most_units(const FormatInfo& info, std::int64_t kept) {
  const std::int64_t inputs = row_pairs_unit(info.format);
  if (inputs == 1) return kept;
  const std::int64_t rows = info.batch * info.out;
  const bool whole =
      info.pattern.kind == Pattern::Kind::kBlock && info.pattern.block_cols % inputs == 0;
  // Of whole units only the last of a row can be cut off by the matrix's edge.
  const std::int64_t most =
      whole ? kept / inputs + (info.in % inputs == 0 ? 0 : rows) : rows * ceil_div(info.in, inputs);
  return std::min(kept, most);
}

LayoutSpec row_pairs_spec(const FormatInfo& info, std::int64_t kept, const PairSizes& sizes) {
  check_kept(kept, checked_mul(info.batch, info.out * info.in));
  const std::int64_t inputs = row_pairs_unit(info.format);
  const std::int64_t units = sizes.units < 0 ? most_units(info, kept) : sizes.units;
  const std::int64_t columns = sizes.columns < 0 ? units : sizes.columns;
  if (units > kept || units < ceil_div(kept, inputs) || columns > units ||
      columns < units - columns) {
    fail(ErrorCode::kInvalidArgument,
         "{} columns and {} units of {} kept positions in pairs of rows", columns, units, kept);
  }
  const std::int64_t blocks = ceil_div(info.in, row_pairs_block(info.format));
  SpecBuilder b(info.batch);
  if (inputs == 1) {
    b.over_all("values", info.dtype, {kept});
  } else {
    b.over_all("values", info.dtype, {units, inputs});
  }
  b.over_all("cols", DType::kUInt8, {columns});
  const std::int64_t places = checked_mul(blocks, info.out);
  if (inputs == 1) {
    b.per_batch("rows", DType::kUInt8, {places});
    b.per_batch("counts", DType::kUInt8, {places});
  } else {
    b.over_all("rows_counts", DType::kUInt8, {2, checked_mul(info.batch, places)});
    b.over_all("masks", DType::kUInt8, {columns});
  }
  b.per_batch("segments", DType::kInt64,
              {ceil_div(info.out, kRowPairsPanel), blocks, RowPairsSegment::kCount});
  if (inputs > 1) {
    b.per_batch("corrections", DType::kInt32, {info.dtype == DType::kInt8 ? info.out : 0});
  }
  return b.finish(kept);
}

LayoutSpec nm24_spec(const FormatInfo& info) {
  const std::int64_t pairs = ceil_div(info.out, 2);
  const std::int64_t groups = nm24_groups(info.in);
  SpecBuilder b(info.batch);
  b.per_batch("values", info.dtype, {pairs, groups * 4});
  b.per_batch("meta", DType::kUInt8, {pairs, groups});
  return b.finish(checked_mul(checked_mul(info.batch, info.out), ceil_div(info.in, 4) * 2));
}

LayoutSpec nm24_tiles_spec(const FormatInfo& info) {
  const std::int64_t element = dtype_bytes(info.dtype);
  if (element > 2) {
    fail(ErrorCode::kInvalidArgument,
         "layout nm24_tiles holds float16, bfloat16, float8_e4m3fn and int8 values, not {}; use "
         "layout nm (the pattern's format)",
         dtype_name(info.dtype));
  }
  const int bytes = static_cast<int>(element);
  SpecBuilder b(info.batch);
  b.per_batch("tiles", DType::kUInt8,
              {nm24_row_tiles(info.out), nm24_input_tiles(info.in, bytes), nm24_tile_bytes(bytes)});
  return b.finish(checked_mul(checked_mul(info.batch, info.out), ceil_div(info.in, 4) * 2));
}

}  // namespace

std::string layout_fault(Layout layout, const Pattern& pattern) {
  using Kind = Pattern::Kind;
  const auto holds_only = [&](std::string_view what) {
    const Layout format = format_for(pattern);
    const std::string own = format == Layout::kBitmask
                                ? std::string()
                                : fmt::format("{} (the pattern's format) or ", layout_name(format));
    return fmt::format("layout {} holds {} patterns, not {}; use layout {}bitmask (any pattern)",
                       layout_name(layout), what, pattern.to_string(), own);
  };
  const bool is_24 = layout == Layout::kNm24Pairs || layout == Layout::kNm24Tiles;
  if (layout == Layout::kNm && pattern.kind != Kind::kNm) return holds_only("N:M");
  if (is_24 && !(pattern == Pattern::nm(2, 4))) return holds_only("2:4");
  if (layout == Layout::kBsr && pattern.kind != Kind::kBlock) return holds_only("block");
  if (layout == Layout::kFanIn && pattern.kind != Kind::kFanIn) return holds_only("fan-in");
  return {};
}

void check_kernel(const FormatInfo& info) {
  if (info.kernel_h == 0 && info.kernel_w == 0) return;
  constexpr std::int64_t kMax = std::numeric_limits<std::uint16_t>::max();
  const std::int64_t taps = info.kernel_h * info.kernel_w;
  const bool sound = info.kernel_h >= 1 && info.kernel_h <= kMax && info.kernel_w >= 1 &&
                     info.kernel_w <= kMax && info.in % taps == 0 && info.batch == 1 &&
                     !info.transposed;
  if (sound) return;
  fail(ErrorCode::kInvalidArgument,
       "a convolution's kernel {}×{} over {} inputs in {} batches{}: both sides are 1 to {}, their "
       "product divides the inputs, and there is one batch, not transposed",
       info.kernel_h, info.kernel_w, info.in, info.batch, info.transposed ? ", transposed" : "",
       kMax);
}

LayoutSpec layout_spec(const FormatInfo& info, std::int64_t kept) {
  return layout_spec(info, kept, PairSizes{});
}

LayoutSpec layout_spec(const FormatInfo& info, std::int64_t kept, const PairSizes& sizes) {
  check_dims(info, kept);
  const std::string fault = pattern_fault(info.pattern);
  if (!fault.empty()) fail(ErrorCode::kInvalidArgument, "pattern: {}", fault);
  const std::string mismatch = layout_fault(info.format, info.pattern);
  if (!mismatch.empty()) fail(ErrorCode::kInvalidArgument, "{}", mismatch);
  check_kernel(info);
  switch (info.format) {
    case Layout::kNm:
      return nm_spec(info);
    case Layout::kBitmask:
      return bitmask_spec(info, kept);
    case Layout::kBsr:
      return bsr_spec(info, kept);
    case Layout::kFanIn:
      return fan_in_spec(info);
    case Layout::kKcsr64:
    case Layout::kKcsr128:
    case Layout::kKcsr256:
      return kcsr_spec(info, kept);
    case Layout::kRowPairs64:
    case Layout::kRowPairs128:
    case Layout::kRowQuads512:
      return row_pairs_spec(info, kept, sizes);
    case Layout::kNm24Pairs:
      return nm24_spec(info);
    case Layout::kNm24Tiles:
      return nm24_tiles_spec(info);
  }
  fail(ErrorCode::kInvalidArgument, "layout number {} is not known", int(info.format));
}

PackedHeader make_header(const FormatInfo& info, const LayoutSpec& spec) {
  PackedHeader h;
  h.dtype = info.dtype;
  h.transposed = info.transposed ? 1 : 0;
  h.layout = info.format;
  h.pattern_kind = info.pattern.kind;
  h.array_count = static_cast<std::uint8_t>(spec.count);
  h.pattern_n = info.pattern.n;
  h.pattern_m = info.pattern.m;
  h.pattern_v = info.pattern.v;
  h.block_rows = info.pattern.block_rows;
  h.block_cols = info.pattern.block_cols;
  h.sparsity = info.pattern.sparsity;
  h.batch = info.batch;
  h.out = info.out;
  h.in = info.in;
  h.kernel_h = static_cast<std::uint16_t>(info.kernel_h);
  h.kernel_w = static_cast<std::uint16_t>(info.kernel_w);
  h.kept = spec.kept;
  h.total_bytes = spec.total_bytes;
  for (std::size_t i = 0; i < static_cast<std::size_t>(spec.count); ++i) {
    h.arrays[i] = {spec.arrays[i].offset, spec.arrays[i].bytes};
  }
  return h;
}

FormatInfo info_of(const PackedHeader& h) {
  FormatInfo info;
  info.format = h.layout;
  info.dtype = h.dtype;
  info.pattern = {h.pattern_kind, h.sparsity,   h.pattern_n, h.pattern_m,
                  h.pattern_v,    h.block_rows, h.block_cols};
  info.batch = h.batch;
  info.out = h.out;
  info.in = h.in;
  info.transposed = h.transposed != 0;
  info.kernel_h = h.kernel_h;
  info.kernel_w = h.kernel_w;
  return info;
}

}  // namespace detail
}  // namespace gossamer
