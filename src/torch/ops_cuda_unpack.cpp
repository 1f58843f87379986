// SPDX-License-Identifier: BSD-3-Clause
// Unpacking and converting on a GPU. All but unpack_tiles read the weight's header, and so wait for
// the stream.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "torch/cuda_layout_argument.h"
#include "torch/cuda_packed.h"
#include "torch/ops_cuda.h"

namespace gossamer::door::cuda_ops {
namespace {

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

void check_shape(const PackedHeader& h, std::span<const std::int64_t> shape) {
  const std::array<std::int64_t, 3> whole{h.batch, h.out, h.in};
  const auto expected = std::span(whole).subspan(h.batch == 1 && shape.size() == 2 ? 1 : 0);
  if (std::ranges::equal(shape, expected)) return;
  refuse(
      fmt::format("shape {} does not match the packed weight, which is [{}, {}, {}] ([batch, out, "
                  "in])",
                  shape_text(shape), h.batch, h.out, h.in));
}

/// Either of `values` and `kept` may be null; rows are contiguous.
void unpack_into(const PackedHeader& h, const Tensor& packed, const MatrixView* values,
                 const MatrixView* kept, const OnDevice& device) {
  const Tensor bytes = aligned(packed);
  auto* const data = static_cast<std::byte*>(bytes.mutable_data_ptr());
  for (std::int64_t b = 0; b < h.batch; ++b) {
    cuda::DenseWeight weight;
    weight.out = h.out;
    weight.in = h.in;
    if (values != nullptr) weight = weight_of(*values, b);
    bool* const mask =
        kept == nullptr ? nullptr : reinterpret_cast<bool*>(kept->data) + b * kept->batch_stride;
    cuda::unpack_sp24(matrix_of(h, data, b), weight, mask, kept == nullptr ? 0 : kept->row_stride,
                      device.stream());
  }
}

MatrixView contiguous_view(const Tensor& tensor, const PackedHeader& h, const char* name,
                           DType dtype) {
  check_shape(h, sizes_of(tensor));
  if (dtype_of(tensor, name) != dtype) {
    refuse(fmt::format("{} is {}; {} is accepted", name, dtype_name(dtype_of(tensor, name)),
                       dtype_name(dtype)));
  }
  const MatrixView view = mutable_matrix_view(tensor, name);
  if (view.cols > 1 && view.col_stride != 1) {
    refuse(fmt::format("{} has columns that are not neighbours in memory; pass a contiguous tensor",
                       name));
  }
  return view;
}

}  // namespace

Tensor convert(const Tensor& packed, const std::string& layout) {
  return guarded([&] {
    const OnDevice device(packed);
    const PackedHeader header = checked_header(packed, device);
    FormatInfo info = detail::info_of(header);
    const Layout wanted = layout == "format"
                              ? format_for(info.pattern)
                              : parse_layout(layout).value_or(static_cast<Layout>(0));
    if (wanted == info.format) return torch::stable::clone(packed);
    const bool is_written_here = wanted == Layout::kNm || wanted == Layout::kNm24Tiles;
    if (!is_read_here(info) || !is_written_here) return convert_on_cpu(packed, layout);
    info.format = wanted;
    const Target target = make_target(packed, info);
    const Tensor bytes = aligned(packed);
    auto* const from = static_cast<std::byte*>(bytes.mutable_data_ptr());
    clear_padding(target, device);
    for (std::int64_t b = 0; b < info.batch; ++b) {
      cuda::convert_sp24(matrix_of(header, from, b), target.header, target.data(),
                         matrix_of(target.header, target.data(), b), device.stream());
    }
    publish(device);
    return target.packed;
  });
}

Tensor unpack(const Tensor& packed, const std::vector<std::int64_t>& shape, ScalarType dtype) {
  return guarded([&] {
    const OnDevice device(packed);
    const PackedHeader h = checked_header(packed, device);
    if (!is_read_here(detail::info_of(h))) return unpack_on_cpu(packed, shape, dtype);
    check_shape(h, shape);
    if (from_scalar_type(dtype) != h.dtype) {
      refuse(fmt::format(
          "dtype {}: the packed weight holds {}; unpack it as that and convert with .to()",
          torch::headeronly::toString(dtype), dtype_name(h.dtype)));
    }
    Tensor values = empty_on(packed, shape, h.dtype);
    const MatrixView view = mutable_matrix_view(values, "values");
    unpack_into(h, packed, &view, nullptr, device);
    return values;
  });
}

Tensor unpacked_tiles(const Tensor& packed, const FormatInfo& info) {
  const OnDevice device(packed);
  const PackedHeader h = detail::make_header(info, detail::layout_spec(info, 0));
  const std::array<std::int64_t, 3> shape{info.batch, info.out, info.in};
  Tensor values = empty_on(packed, std::span(shape).subspan(info.batch == 1 ? 1 : 0), info.dtype);
  const MatrixView view = mutable_matrix_view(values, "values");
  unpack_into(h, packed, &view, nullptr, device);
  return values;
}

void check_header(const Tensor& packed, const FormatInfo& info) {
  const OnDevice device(packed);
  const PackedHeader h = checked_header(packed, device);
  const std::array<std::int64_t, 3> shape{info.batch, info.out, info.in};
  check_shape(h, shape);
  if (h.layout == info.format && h.dtype == info.dtype) return;
  refuse(fmt::format("the packed weight is {} in layout {}, not {} in {}", dtype_name(h.dtype),
                     layout_name(h.layout), dtype_name(info.dtype), layout_name(info.format)));
}

Tensor unpack_tiles(const Tensor& packed, std::int64_t layout,
                    const std::vector<std::int64_t>& shape, ScalarType dtype) {
  return guarded([&] {
    check_layout(layout);
    if (shape.size() != 2 && shape.size() != 3) {
      refuse(
          fmt::format("shape {}: [out, in] and [batch, out, in] are accepted", shape_text(shape)));
    }
    const DType values = from_scalar_type(dtype);
    const auto element = static_cast<int>(dtype_bytes(values));
    const bool quantized = element == 1;
    const std::optional<DType> told = told_dtype(layout, quantized);
    if (told && *told != values) {
      refuse(fmt::format(
          "dtype {}: the packed weight holds {}; unpack it as that and convert with .to()",
          dtype_name(values), dtype_name(*told)));
    }
    const std::int64_t batch = shape.size() == 3 ? shape.front() : 1;
    const FormatInfo info = tiles_info(values, batch, shape[shape.size() - 2], shape.back(), false);
    const std::int64_t bytes = detail::layout_spec(info, 0).total_bytes;
    const std::int64_t inputs = told_inputs(layout, packed, info.out, batch, element);
    if (packed.numel() != bytes || (inputs != 0 && inputs != info.in)) {
      refuse(fmt::format("shape {} does not match the packed weight of {} bytes; pass its own",
                         shape_text(shape), packed.numel()));
    }
    if (!told) check_header(packed, info);
    Tensor whole = unpacked_tiles(packed, info);
    return shape.size() == 3 && batch == 1 ? torch::stable::unsqueeze(whole, 0) : whole;
  });
}

Tensor unpack_mask(const Tensor& packed, const std::vector<std::int64_t>& shape) {
  return guarded([&] {
    const OnDevice device(packed);
    const PackedHeader h = checked_header(packed, device);
    if (!is_read_here(detail::info_of(h))) return unpack_mask_on_cpu(packed, shape);
    check_shape(h, shape);
    Tensor mask = empty_on(packed, shape, DType::kBool);
    const MatrixView view = mutable_matrix_view(mask, "mask");
    unpack_into(h, packed, nullptr, &view, device);
    return mask;
  });
}

void unpack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask) {
  guarded([&] {
    check_device(values, "values", packed);
    const OnDevice device(packed);
    const PackedHeader h = checked_header(packed, device);
    if (!is_read_here(detail::info_of(h))) {
      refuse(
          "unpack_: the packed weight is not 2:4 in tiles or the format nm, which is what is "
          "unpacked on a GPU; use unpack and copy_");
    }
    const MatrixView dense = contiguous_view(values, h, "values", h.dtype);
    MatrixView kept;
    if (mask) {
      check_device(*mask, "mask", packed);
      kept = contiguous_view(*mask, h, "mask", DType::kBool);
    }
    unpack_into(h, packed, &dense, mask ? &kept : nullptr, device);
    return 0;
  });
}

}  // namespace gossamer::door::cuda_ops
