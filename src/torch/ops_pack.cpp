// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/layouts.h"
#include "core/taps.h"
#include "gossamer/conv.h"
#include "gossamer/linear.h"
#include "gossamer/mask.h"
#include "torch/ops.h"

namespace gossamer::door {
namespace {

using nlohmann::json;

/// The order [OC, KH, KW, IC] of a convolution weight [OC, IC, KH, KW], and the way back.
constexpr std::array<std::int64_t, 4> kTapsFirst{0, 2, 3, 1};
constexpr std::array<std::int64_t, 4> kTapsLast{0, 3, 1, 2};

Tensor permuted(const Tensor& tensor, const std::array<std::int64_t, 4>& order) {
  using torch::stable::detail::from;
  const torch::headeronly::IntHeaderOnlyArrayRef dims(order.data(), order.size());
  std::array<StableIValue, 2> stack{from(tensor), from(dims)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::permute", "", stack.data(), TORCH_ABI_VERSION));
  return as_contiguous(torch::stable::detail::to<Tensor>(stack[0]));
}

/// A convolution weight as its matrix [OC, KH·KW·IC]; any other tensor as it is.
Tensor as_matrix(const Tensor& tensor) {
  if (tensor.dim() != 4) return tensor;
  const Tensor taps_first = permuted(tensor, kTapsFirst);
  const auto sizes = sizes_of(taps_first);
  const std::array<std::int64_t, 2> shape{sizes[0], sizes[1] * sizes[2] * sizes[3]};
  return torch::stable::view(taps_first, {shape.data(), shape.size()});
}

/// The inverse of as_matrix for a weight of `shape`.
Tensor from_matrix(const Tensor& matrix, std::span<const std::int64_t> shape) {
  if (shape.size() != 4) return matrix;
  const std::array<std::int64_t, 4> sizes{shape[0], shape[2], shape[3], shape[1]};
  return permuted(torch::stable::view(matrix, {sizes.data(), sizes.size()}), kTapsLast);
}

/// The shape of the matrix behind a weight of `shape`.
std::vector<std::int64_t> matrix_shape(std::span<const std::int64_t> shape) {
  if (shape.size() != 4) return {shape.begin(), shape.end()};
  return {shape[0], shape[1] * shape[2] * shape[3]};
}

/// Checks `shape` against the weight's logical one, so that what a fake promised is what comes.
void check_shape(const PackedView& view, std::span<const std::int64_t> shape) {
  const PackedHeader& header = view.header();
  if (header.kernel_h > 0) {
    if (shape.size() == 4 && shape[0] == view.out() && shape[1] * view.taps() == view.in() &&
        shape[2] == header.kernel_h && shape[3] == header.kernel_w) {
      return;
    }
    refuse(fmt::format(
        "shape {} does not match the packed convolution weight, which is [{}, {}, "
        "{}, {}] ([out, in, height, width])",
        shape_text(shape), view.out(), view.in() / view.taps(), header.kernel_h, header.kernel_w));
  }
  const bool batched = shape.size() == 3;
  if ((shape.size() == 2 || batched) && shape[shape.size() - 2] == view.out() &&
      shape[shape.size() - 1] == view.in() && (batched ? shape[0] : 1) == view.batch()) {
    return;
  }
  refuse(fmt::format(
      "shape {} does not match the packed weight, which is [{}, {}, {}] ([batch, out, in])",
      shape_text(shape), view.batch(), view.out(), view.in()));
}

/// The name behind each bucket's hash; null where the bucket has none or the kernel is not in this
/// build.
json plan_names(const PackedView& view) {
  json names = json::array();
  for (int bucket = 0; bucket < kTokenBuckets; ++bucket) {
    const std::uint32_t hash = view.header().planned(bucket);
    json name;
    if (hash == kernel_hash(kDenseKernel)) name = kDenseKernel;
    for (const LinearKernel& kernel : linear_kernels()) {
      if (hash != 0 && kernel_hash(kernel.name) == hash) name = kernel.name;
    }
    for (const Conv2dKernel& kernel : conv2d_kernels()) {
      if (hash != 0 && kernel_hash(kernel.name) == hash) name = kernel.name;
    }
    names.push_back(std::move(name));
  }
  return names;
}

FormatInfo parse_info(const json& text) {
  FormatInfo info;
  const auto format = parse_layout(text.at("format").get<std::string>());
  if (!format || !is_format(*format)) {
    refuse(fmt::format("format {} is not one of \"nm\", \"bitmask\", \"bsr\", \"fanin\"",
                       text.at("format").dump()));
  }
  const auto dtype = parse_dtype(text.at("dtype").get<std::string>());
  if (!dtype || !is_weight_dtype(*dtype)) {
    refuse(fmt::format("dtype {} is not one that a weight can have", text.at("dtype").dump()));
  }
  info.format = *format;
  info.dtype = *dtype;
  info.pattern = Pattern::parse(text.at("pattern").get<std::string>());
  info.transposed = text.at("transposed").get<bool>();
  const auto shape = text.at("shape").get<std::vector<std::int64_t>>();
  if (shape.size() != 2 && shape.size() != 3) {
    refuse(fmt::format("shape {}: [out, in] or [batch, out, in] is accepted", shape_text(shape)));
  }
  info.batch = shape.size() == 3 ? shape[0] : 1;
  info.out = shape[shape.size() - 2];
  info.in = shape[shape.size() - 1];
  if (const auto kernel = text.find("kernel"); kernel != text.end()) {
    const auto sides = kernel->get<std::vector<std::int64_t>>();
    if (sides.size() != 2 || sides[0] < 1 || sides[1] < 1) {
      refuse(fmt::format("kernel {}: two sizes of at least 1 ([KH, KW]) are accepted",
                         shape_text(sides)));
    }
    info.kernel_h = sides[0];
    info.kernel_w = sides[1];
  }
  return info;
}

/// Names of the arrays: strings, or the objects that info() writes.
std::vector<std::string> array_names(const json& text) {
  std::vector<std::string> names;
  for (const json& array : text.at("arrays")) {
    names.push_back((array.is_object() ? array.at("name") : array).get<std::string>());
  }
  return names;
}

}  // namespace

Tensor pack(const Tensor& values, const std::optional<Tensor>& mask, const std::string& pattern,
            const std::string& layout, bool transposed, const std::string& name) {
  return guarded([&] {
    const Tensor matrix = as_matrix(values);
    const Tensor mask_matrix = mask ? as_matrix(*mask) : matrix;
    const ConstMatrixView values_view = matrix_view(matrix, name.c_str());
    const ConstMatrixView mask_view = mask ? matrix_view(mask_matrix, "mask") : ConstMatrixView{};
    const ConstMatrixView* const kept = mask ? &mask_view : nullptr;
    PackOptions options;
    if (values.dim() == 4) {
      options.kernel_h = values.size(2);
      options.kernel_w = values.size(3);
    }
    const ConstMatrixView& marks = mask ? mask_view : values_view;
    const std::int64_t taps =
        values.dim() == 4 ? std::max<std::int64_t>(values.size(2) * values.size(3), 1) : 1;
    const Pattern wanted = pattern.empty() ? detail::infer_packed_pattern(marks, taps)
                                           : detail::requested_packed_pattern(
                                                 marks, taps, Pattern::parse(pattern), name);
    options.transposed = transposed;
    options.name = name;
    options.allocator = tensor_allocator();
    options.parallel = torch_threads();
    const Layouts layouts = layouts_from_name(layout, wanted);
    const PackedWeight first = gossamer::pack(values_view, kept, wanted, layouts.first, options);
    if (!layouts.second) return to_tensor(first);
    return to_tensor(gossamer::convert(first, layouts.first, *layouts.second, tensor_allocator()));
  });
}

void pack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask) {
  guarded([&] {
    const PackedView view = open_in_place(packed);
    check_shape(view, sizes_of(values));
    const PackedHeader before = view.header();
    const Tensor matrix = as_matrix(values);
    const Tensor mask_matrix = mask ? as_matrix(*mask) : matrix;
    const ConstMatrixView values_view = matrix_view(matrix, "values");
    const ConstMatrixView mask_view = matrix_view(mask_matrix, mask ? "mask" : "values");
    if (values_view.dtype != view.dtype()) {
      refuse(fmt::format("values are {}, the packed weight holds {}; convert them with .to()",
                         dtype_name(values_view.dtype), dtype_name(view.dtype())));
    }
    PackOptions options;
    options.transposed = view.transposed();
    options.kernel_h = before.kernel_h;
    options.kernel_w = before.kernel_w;
    options.parallel = torch_threads();
    const auto check_bytes = [](std::int64_t bytes, std::int64_t there) {
      if (bytes == there) return;
      refuse(
          fmt::format("what is kept takes {} bytes, the packed weight has {}; keep as many as "
                      "before, or pack anew",
                      bytes, there));
    };
    auto* const memory = static_cast<std::byte*>(packed.mutable_data_ptr());
    if (const std::optional<PackedView> second = view.second()) {
      // Elsewhere first: whether both layouts fit is not known before both are there.
      const PackedWeight one = gossamer::pack(values_view, mask ? &mask_view : nullptr,
                                              view.pattern(), view.layout(), options);
      const PackedWeight both = gossamer::convert(one, view.layout(), second->layout());
      check_bytes(both.size_bytes(), view.size_bytes());
      check_bytes(both.view().layout_bytes(), view.layout_bytes());
      auto* const header = reinterpret_cast<PackedHeader*>(both.data());
      header->set_plan(before);
      reinterpret_cast<PackedHeader*>(both.data() + view.layout_bytes())->set_plan(before);
      std::memcpy(memory, both.data(), static_cast<std::size_t>(both.size_bytes()));
      return 0;
    }
    options.allocator = [&](std::int64_t bytes) {
      check_bytes(bytes, view.size_bytes());
      return std::shared_ptr<std::byte>(memory, [](std::byte*) {});
    };
    const PackedWeight again = gossamer::pack(values_view, mask ? &mask_view : nullptr,
                                              view.pattern(), view.layout(), options);
    reinterpret_cast<PackedHeader*>(again.data())->set_plan(before);
    return 0;
  });
}

void unpack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask) {
  guarded([&] {
    const PackedTensor weight(packed);
    const auto matrix_of = [&](const Tensor& tensor, const char* name) {
      if (tensor.dim() == 4) {
        refuse(
            fmt::format("{} is a convolution's: [out, in] and [batch, out, in] are unpacked in "
                        "place; use unpack and copy_",
                        name));
      }
      check_shape(weight.view(), sizes_of(tensor));
      return mutable_matrix_view(tensor, name);
    };
    const MatrixView dense = matrix_of(values, "values");
    MatrixView kept;
    if (mask) kept = matrix_of(*mask, "mask");
    gossamer::unpack(weight.view(), dense, mask ? &kept : nullptr, torch_threads());
    return 0;
  });
}

Tensor unpack(const Tensor& packed, const std::vector<std::int64_t>& shape, ScalarType dtype) {
  return guarded([&] {
    const PackedTensor weight(packed);
    check_shape(weight.view(), shape);
    if (from_scalar_type(dtype) != weight.view().dtype()) {
      refuse(fmt::format(
          "dtype {}: the packed weight holds {}; unpack it as that and convert with .to()",
          torch::headeronly::toString(dtype), dtype_name(weight.view().dtype())));
    }
    Tensor values = empty(matrix_shape(shape), weight.view().dtype());
    gossamer::unpack(weight.view(), mutable_matrix_view(values, "values"), nullptr,
                     torch_threads());
    return from_matrix(values, shape);
  });
}

Tensor unpack_mask(const Tensor& packed, const std::vector<std::int64_t>& shape) {
  return guarded([&] {
    const PackedTensor weight(packed);
    check_shape(weight.view(), shape);
    Tensor mask = empty(matrix_shape(shape), DType::kBool);
    gossamer::unpack_mask(weight.view(), mutable_matrix_view(mask, "mask"), torch_threads());
    return from_matrix(mask, shape);
  });
}

std::string info(const Tensor& packed) {
  return guarded([&] {
    const PackedTensor weight(packed);
    const PackedView& view = weight.view();
    std::vector<std::int64_t> shape{view.out(), view.in()};
    if (view.batch() != 1) shape.insert(shape.begin(), view.batch());
    json text{{"layout", layouts_name(view)},
              {"layout_code", static_cast<int>(view.layout())},
              {"format", layout_name(format_for(view.pattern()))},
              {"pattern", view.pattern().to_string()},
              {"dtype", dtype_name(view.dtype())},
              {"shape", shape},
              {"batch", view.batch()},
              {"out", view.out()},
              {"in", view.in()},
              {"kept", view.kept()},
              {"bytes", view.size_bytes()},
              {"transposed", view.transposed()},
              {"plan", plan_names(view)},
              {"arrays", json::array()}};
    if (view.header().kernel_h > 0) {
      text["kernel"] = {view.header().kernel_h, view.header().kernel_w};
    }
    if (is_format(view.layout())) {
      text["format"] = layout_name(view.layout());
      for (const PackedArray& array : gossamer::format_arrays(view)) {
        text["arrays"].push_back(
            {{"name", array.name}, {"dtype", dtype_name(array.dtype)}, {"shape", array.shape}});
      }
    }
    return text.dump();
  });
}

std::vector<Tensor> format_arrays(const Tensor& packed) {
  return guarded([&] {
    const PackedTensor weight(packed);
    if (!is_format(weight.view().layout())) {
      refuse(fmt::format(
          "layout {} is not saved; convert it first: torch.ops.gossamer.convert(packed, "
          "\"format\")",
          layout_name(weight.view().layout())));
    }
    std::vector<Tensor> arrays;
    for (const PackedArray& array : gossamer::format_arrays(weight.view())) {
      Tensor copy = empty(array.shape, array.dtype);
      if (!array.bytes.empty()) {
        std::memcpy(copy.mutable_data_ptr(), array.bytes.data(), array.bytes.size());
      }
      arrays.push_back(std::move(copy));
    }
    return arrays;
  });
}

Tensor from_format_arrays(const std::string& info, const std::vector<Tensor>& arrays) {
  return guarded([&] {
    FormatInfo format;
    std::vector<std::string> names;
    try {
      const json text = json::parse(info);
      format = parse_info(text);
      names = array_names(text);
    } catch (const json::exception& error) {
      refuse(fmt::format(
          "info is not the JSON that torch.ops.gossamer.info writes (format, pattern, dtype, "
          "shape, transposed, arrays): {}",
          error.what()));
    }
    if (names.size() != arrays.size()) {
      refuse(fmt::format("info names {} arrays, {} were given", names.size(), arrays.size()));
    }
    std::vector<Tensor> held;
    std::vector<PackedArray> parts;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      const Tensor& array = held.emplace_back(as_contiguous(arrays[i]));
      const DType dtype = dtype_of(array, names[i].c_str());
      const auto sizes = sizes_of(array);
      const auto bytes = static_cast<std::size_t>(array.numel() * dtype_bytes(dtype));
      parts.push_back({names[i],
                       dtype,
                       {sizes.begin(), sizes.end()},
                       {static_cast<const std::byte*>(array.const_data_ptr()), bytes}});
    }
    return to_tensor(gossamer::from_format_arrays(format, parts, tensor_allocator()));
  });
}

}  // namespace gossamer::door
