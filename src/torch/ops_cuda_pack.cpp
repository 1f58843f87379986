// SPDX-License-Identifier: BSD-3-Clause
// Packing, unpacking and converting on a GPU. Only the verdict on a weight that is said to be 2:4
// waits for the GPU; inside a stream capture that is refused by CUDA itself.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "core/layouts.h"
#include "cuda/pack_sp24.h"
#include "cuda/transfer.h"
#include "torch/ops_cuda.h"

namespace gossamer::door::cuda_ops {
namespace {

/// A packed tensor for a weight of this description, on the device of `like`.
struct Target {
  PackedHeader header;
  Tensor packed;
  std::byte* data() const { return static_cast<std::byte*>(packed.mutable_data_ptr()); }
};

Target make_target(const Tensor& like, const FormatInfo& info) {
  const detail::LayoutSpec spec = detail::layout_spec(info, 0);
  Target target{detail::make_header(info, spec), {}};
  target.packed =
      empty_on(like, std::span<const std::int64_t>(&spec.total_bytes, 1), DType::kUInt8);
  return target;
}

/// Zeros between and after the arrays, so that equal weights are equal bytes.
void clear_padding(const Target& target, const OnDevice& device) {
  const PackedHeader& h = target.header;
  for (int i = 0; i < h.array_count; ++i) {
    const auto& array = h.arrays[static_cast<std::size_t>(i)];
    const std::int64_t end = array.offset + array.bytes;
    const std::int64_t next =
        i + 1 < h.array_count ? h.arrays[static_cast<std::size_t>(i) + 1].offset : h.total_bytes;
    cuda::clear_device(target.data() + end, static_cast<std::size_t>(next - end), device.stream());
  }
}

/// [batch,] out, in with contiguous columns, as the kernels read it.
struct Dense {
  Tensor tensor;
  MatrixView view;
};

Dense dense_of(const Tensor& tensor, const char* name) {
  Dense dense{tensor, mutable_matrix_view(tensor, name)};
  if (dense.view.cols > 1 && dense.view.col_stride != 1) {
    dense.tensor = as_contiguous(tensor);
    dense.view = mutable_matrix_view(dense.tensor, name);
  }
  return dense;
}

void check_packable(const MatrixView& view, const std::string& name) {
  if (view.dtype == DType::kBFloat16 || view.dtype == DType::kFloat16) return;
  refuse(
      fmt::format("weight '{}' is {}: float16 and bfloat16 are packed on a GPU; convert it with "
                  ".to(torch.bfloat16), or pack it on the CPU",
                  name, dtype_name(view.dtype)));
}

cuda::DenseWeight weight_of(const MatrixView& view, std::int64_t batch) {
  cuda::DenseWeight weight;
  weight.values = view.data + 2 * batch * view.batch_stride;
  weight.row_stride = view.row_stride;
  weight.dtype = view.dtype;
  weight.out = view.rows;
  weight.in = view.cols;
  return weight;
}

std::int64_t matrix_bytes(const PackedHeader& header) {
  return header.arrays[0].bytes / header.batch;
}

[[noreturn]] void refuse_violation(const std::string& name, std::uint64_t place, std::int64_t in,
                                   std::int64_t batch, bool is_stack) {
  const auto columns = static_cast<std::uint64_t>(in);
  throw Error(
      ErrorCode::kPatternViolation,
      fmt::format("weight '{}' {}row {}, columns {}–{}: more than 2 non-zeros, 2:4 allows 2; "
                  "prune it first (gossamer.Magnitude(\"2:4\")) or keep it dense",
                  name, is_stack ? fmt::format("batch {}, ", batch) : std::string(),
                  place / columns, place % columns, std::min(place % columns + 3, columns - 1)));
}

/// Kernels that read the weight may begin before their predecessor has ended; after this one all
/// that was written before it is visible.
void publish(const OnDevice& device) { cuda::order_device(device.stream()); }

Tensor pack_tiles(const Tensor& values, const std::optional<Tensor>& mask, bool transposed,
                  const std::string& name, cuda::Selection selection) {
  const OnDevice device(values);
  const Dense dense = dense_of(values, name.c_str());
  check_packable(dense.view, name);
  const MatrixView& view = dense.view;
  std::optional<Tensor> kept;
  if (mask) {
    check_device(*mask, "mask", values);
    if (dtype_of(*mask, "mask") != DType::kBool ||
        sizes_of(*mask).size() != sizes_of(values).size() ||
        !std::equal(sizes_of(*mask).begin(), sizes_of(*mask).end(), sizes_of(values).begin())) {
      refuse(fmt::format("mask has shape {}; a bool tensor of the weight's shape, {}, is accepted",
                         shape_text(sizes_of(*mask)), shape_text(sizes_of(values))));
    }
    kept = as_contiguous(*mask);
  }
  const Target target =
      make_target(values, tiles_info(view.dtype, view.batch, view.rows, view.cols, transposed));
  const std::array<std::int64_t, 1> one{1};
  const Tensor verdict = empty_on(values, one, DType::kInt64);
  auto* const violation = static_cast<std::uint64_t*>(verdict.mutable_data_ptr());
  for (std::int64_t b = 0; b < view.batch; ++b) {
    cuda::DenseWeight weight = weight_of(view, b);
    if (kept) {
      weight.mask = static_cast<const bool*>(kept->const_data_ptr()) + b * view.rows * view.cols;
      weight.mask_stride = view.cols;
    }
    PackedHeader header = target.header;
    header.arrays[0].offset += b * matrix_bytes(target.header);
    cuda::pack_sp24(weight, target.header, header.arrays[0].offset, target.data(), selection,
                    violation, device.stream());
    if (selection == cuda::Selection::kVerify) {
      std::uint64_t place = 0;
      cuda::read_device(&place, violation, sizeof(place), device.stream());
      if (place != cuda::kNoViolation) {
        refuse_violation(name, place, view.cols, b, view.batch > 1);
      }
    }
  }
  clear_padding(target, device);
  publish(device);
  return target.packed;
}

/// The arrays of a weight in the format nm, whose header is `header`.
cuda::Nm24Format nm_arrays(const PackedHeader& header, std::byte* packed, std::int64_t batch) {
  cuda::Nm24Format format;
  const std::int64_t values = header.arrays[detail::NmArrays::kValues].bytes / header.batch;
  const std::int64_t indices = header.arrays[detail::NmArrays::kIndices].bytes / header.batch;
  format.values = packed + header.arrays[detail::NmArrays::kValues].offset + batch * values;
  format.indices = reinterpret_cast<std::uint8_t*>(
      packed + header.arrays[detail::NmArrays::kIndices].offset + batch * indices);
  format.dtype = header.dtype;
  format.out = header.out;
  format.in = header.in;
  return format;
}

/// Refuses a header whose arrays do not lie where its shape says.
PackedHeader checked_header(const Tensor& packed, const OnDevice& device) {
  const PackedHeader header = read_header(packed, device);
  const FormatInfo info = detail::info_of(header);
  const PackedHeader expected = detail::make_header(info, detail::layout_spec(info, header.kept));
  if (expected.total_bytes != header.total_bytes || expected.kept != header.kept) {
    refuse("packed has a header that contradicts itself; it must come unchanged from pack()");
  }
  return header;
}

Tensor on_cpu(const Tensor& tensor) {
  return torch::stable::to(tensor, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

/// By way of the CPU, for layouts that no kernel of the GPU writes or reads.
Tensor convert_on_cpu(const Tensor& packed, const std::string& layout) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(on_cpu(packed)), from(layout)};
  call_operator("gossamer::convert", stack.data());
  const auto converted = torch::stable::detail::to<Tensor>(stack[0]);
  return torch::stable::to(converted, packed.device());
}

}  // namespace

Tensor pack(const Tensor& values, const std::optional<Tensor>& mask, const std::string& pattern,
            const std::string& layout, bool transposed, const std::string& name) {
  return guarded([&] {
    const Pattern wanted = pattern.empty() ? Pattern::nm(2, 4) : Pattern::parse(pattern);
    if (!(wanted == Pattern::nm(2, 4))) {
      refuse(
          fmt::format("weight '{}': pattern {} is not packed on a GPU, 2:4 is; pack it on the "
                      "CPU (values.cpu())",
                      name, wanted.to_string()));
    }
    if (layout != "format" && layout != "nm" && layout != "nm24_tiles") {
      refuse(
          fmt::format("weight '{}': layout '{}' is not made on a GPU; \"format\", \"nm\" and "
                      "\"nm24_tiles\" are",
                      name, layout));
    }
    const Tensor tiles = pack_tiles(values, mask, transposed, name, cuda::Selection::kVerify);
    return layout == "nm24_tiles" ? tiles : convert(tiles, "nm");
  });
}

Tensor prune_pack_24(const Tensor& values, bool transposed) {
  return guarded([&] {
    return pack_tiles(values, std::nullopt, transposed, "weight", cuda::Selection::kMagnitude);
  });
}

Tensor convert(const Tensor& packed, const std::string& layout) {
  return guarded([&] {
    const OnDevice device(packed);
    const PackedHeader header = checked_header(packed, device);
    FormatInfo info = detail::info_of(header);
    const Layout wanted = layout == "format"
                              ? format_for(info.pattern)
                              : parse_layout(layout).value_or(static_cast<Layout>(0));
    if (wanted == info.format) return torch::stable::clone(packed);
    const bool here = dtype_bytes(info.dtype) == 2 && info.pattern == Pattern::nm(2, 4) &&
                      (wanted == Layout::kNm || wanted == Layout::kNm24Tiles) &&
                      (info.format == Layout::kNm || info.format == Layout::kNm24Tiles);
    if (!here) return convert_on_cpu(packed, layout);
    info.format = wanted;
    const Target target = make_target(packed, info);
    auto* const from = static_cast<std::byte*>(packed.mutable_data_ptr());
    for (std::int64_t b = 0; b < info.batch; ++b) {
      if (wanted == Layout::kNm24Tiles) {
        cuda::tiles_from_nm24(nm_arrays(header, from, b), target.header,
                              target.header.arrays[0].offset + b * matrix_bytes(target.header),
                              target.data(), device.stream());
      } else {
        const std::byte* tiles = from + header.arrays[0].offset + b * matrix_bytes(header);
        cuda::nm24_from_tiles(tiles, target.header, nm_arrays(target.header, target.data(), b),
                              target.data(), device.stream());
      }
    }
    clear_padding(target, device);
    publish(device);
    return target.packed;
  });
}

namespace {

/// Checks `shape` against the weight and gives its tiles, converted where they are another layout.
struct Tiles {
  Tensor packed;
  PackedHeader header;
};

Tiles tiles_of(const Tensor& packed, std::span<const std::int64_t> shape, const OnDevice& device) {
  Tiles tiles{packed, checked_header(packed, device)};
  if (tiles.header.layout != Layout::kNm24Tiles) {
    tiles.packed = convert(packed, "nm24_tiles");
    tiles.header = checked_header(tiles.packed, device);
  }
  const PackedHeader& h = tiles.header;
  const std::array<std::int64_t, 3> whole{h.batch, h.out, h.in};
  const auto expected = std::span(whole).subspan(h.batch == 1 && shape.size() == 2 ? 1 : 0);
  if (shape.size() != expected.size() ||
      !std::equal(shape.begin(), shape.end(), expected.begin())) {
    refuse(fmt::format(
        "shape {} does not match the packed weight, which is [{}, {}, {}] ([batch, out, in])",
        shape_text(shape), h.batch, h.out, h.in));
  }
  return tiles;
}

void unpack_into(const Tiles& tiles, std::byte* values, bool* kept, const OnDevice& device) {
  const PackedHeader& h = tiles.header;
  const auto* data = static_cast<const std::byte*>(tiles.packed.const_data_ptr());
  for (std::int64_t b = 0; b < h.batch; ++b) {
    const std::int64_t first = b * h.out * h.in;
    cuda::DenseWeight weight;
    weight.values = values == nullptr ? nullptr : values + 2 * first;
    weight.row_stride = h.in;
    weight.dtype = h.dtype;
    weight.out = h.out;
    weight.in = h.in;
    cuda::unpack_sp24(data + h.arrays[0].offset + b * matrix_bytes(h), weight,
                      kept == nullptr ? nullptr : kept + first, device.stream());
  }
}

bool is_read_here(const Tensor& packed, const OnDevice& device) {
  return dtype_bytes(read_header(packed, device).dtype) == 2;
}

/// By way of the CPU, for values of which no kernel of the GPU unpacks tiles.
Tensor unpack_on_cpu(const Tensor& packed, const std::vector<std::int64_t>& shape,
                     ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(on_cpu(packed)), from(shape), from(dtype)};
  call_operator("gossamer::unpack", stack.data());
  return torch::stable::to(torch::stable::detail::to<Tensor>(stack[0]), packed.device());
}

Tensor unpack_mask_on_cpu(const Tensor& packed, const std::vector<std::int64_t>& shape) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(on_cpu(packed)), from(shape)};
  call_operator("gossamer::unpack_mask", stack.data());
  return torch::stable::to(torch::stable::detail::to<Tensor>(stack[0]), packed.device());
}

}  // namespace

Tensor unpack(const Tensor& packed, const std::vector<std::int64_t>& shape, ScalarType dtype) {
  return guarded([&] {
    const OnDevice device(packed);
    if (!is_read_here(packed, device)) return unpack_on_cpu(packed, shape, dtype);
    const Tiles tiles = tiles_of(packed, shape, device);
    if (from_scalar_type(dtype) != tiles.header.dtype) {
      refuse(fmt::format(
          "dtype {}: the packed weight holds {}; unpack it as that and convert with .to()",
          torch::headeronly::toString(dtype), dtype_name(tiles.header.dtype)));
    }
    Tensor values = empty_on(packed, shape, tiles.header.dtype);
    unpack_into(tiles, static_cast<std::byte*>(values.mutable_data_ptr()), nullptr, device);
    return values;
  });
}

Tensor unpack_mask(const Tensor& packed, const std::vector<std::int64_t>& shape) {
  return guarded([&] {
    const OnDevice device(packed);
    if (!is_read_here(packed, device)) return unpack_mask_on_cpu(packed, shape);
    const Tiles tiles = tiles_of(packed, shape, device);
    Tensor mask = empty_on(packed, shape, DType::kBool);
    unpack_into(tiles, nullptr, static_cast<bool*>(mask.mutable_data_ptr()), device);
    return mask;
  });
}

}  // namespace gossamer::door::cuda_ops
