// SPDX-License-Identifier: BSD-3-Clause
// Packing on a GPU. pack_24 and quantize_pack_24 only enqueue, and leave what they found wrong in
// device memory; check_24 waits for it. pack is both; inside a stream capture it is refused by CUDA
// itself.
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <vector>

#include "cuda/transfer.h"
#include "torch/cuda_packed.h"
#include "torch/ops_cuda.h"

namespace gossamer::door::cuda_ops {
namespace {

using cuda::Selection;
using cuda::Verdict;

constexpr std::int64_t kVerdictNumbers = sizeof(Verdict) / sizeof(std::int64_t);

bool is_packable(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat8E4M3 ||
         dtype == DType::kInt8;
}

void check_packable(DType dtype, const std::string& name) {
  if (is_packable(dtype)) return;
  refuse(
      fmt::format("weight '{}' is {}: float16, bfloat16, float8_e4m3fn and int8 are packed on a "
                  "GPU; convert it with .to(torch.bfloat16), or pack it on the CPU",
                  name, dtype_name(dtype)));
}

Layout layout_of(const std::string& layout, const std::string& name) {
  if (layout == "format" || layout == "nm") return Layout::kNm;
  if (layout == "nm24_tiles") return Layout::kNm24Tiles;
  refuse(
      fmt::format("weight '{}': layout '{}' is not made on a GPU; \"format\", \"nm\" and "
                  "\"nm24_tiles\" are",
                  name, layout));
}

/// A weight with the mask that it is packed by.
struct Source {
  Source(const Tensor& values, const std::optional<Tensor>& mask, const std::string& name)
      : dense(dense_of(values, name.c_str())) {
    if (!mask) return;
    check_device(*mask, "mask", values, "the weight");
    const auto sizes = sizes_of(values);
    if (dtype_of(*mask, "mask") != DType::kBool || !std::ranges::equal(sizes_of(*mask), sizes)) {
      refuse(fmt::format("mask has shape {}; a bool tensor of the weight's shape, {}, is accepted",
                         shape_text(sizes_of(*mask)), shape_text(sizes)));
    }
    kept = mask->is_contiguous() ? *mask : as_contiguous(*mask);
  }

  cuda::DenseWeight matrix(std::int64_t batch) const {
    cuda::DenseWeight weight = weight_of(dense.view, batch);
    if (kept) {
      weight.mask =
          static_cast<const bool*>(kept->const_data_ptr()) + batch * weight.out * weight.in;
      weight.mask_stride = weight.in;
    }
    return weight;
  }

  FormatInfo info(Layout layout, DType dtype, bool transposed) const {
    const MatrixView& v = dense.view;
    return {layout, dtype, Pattern::nm(2, 4), v.batch, v.rows, v.cols, transposed};
  }

  Dense dense;
  std::optional<Tensor> kept;
};

Tensor new_verdict(const Tensor& like, std::int64_t batch) {
  const std::array<std::int64_t, 2> shape{batch, kVerdictNumbers};
  return empty_on(like, shape, DType::kInt64);
}

/// Packs every matrix of a stack into `target`, in the weight's own dtype.
Tensor pack_into(const Target& target, const Source& source, Selection selection,
                 const OnDevice& device) {
  Tensor verdict = new_verdict(target.packed, target.header.batch);
  auto* const verdicts = static_cast<Verdict*>(verdict.mutable_data_ptr());
  for (std::int64_t b = 0; b < target.header.batch; ++b) {
    cuda::pack_sp24(source.matrix(b), target.header, target.data(),
                    matrix_of(target.header, target.data(), b), selection, verdicts + b,
                    device.stream());
  }
  publish(device);
  return verdict;
}

/// What is wrong with every matrix of a stack; writes nothing else.
Tensor verified(const Source& source, const OnDevice& device) {
  const MatrixView& view = source.dense.view;
  Tensor verdict = new_verdict(source.dense.tensor, view.batch);
  auto* const verdicts = static_cast<Verdict*>(verdict.mutable_data_ptr());
  cuda::PackedMatrix nowhere;
  nowhere.dtype = view.dtype;
  nowhere.out = view.rows;
  nowhere.in = view.cols;
  for (std::int64_t b = 0; b < view.batch; ++b) {
    cuda::pack_sp24(source.matrix(b), PackedHeader{}, nullptr, nowhere, Selection::kVerify,
                    verdicts + b, device.stream());
  }
  return verdict;
}

std::tuple<Tensor, Tensor> packed_and_verdict(const Tensor& values,
                                              const std::optional<Tensor>& mask, Layout layout,
                                              bool transposed, Selection selection,
                                              const std::string& name) {
  const OnDevice device(values);
  const Source source(values, mask, name);
  const DType dtype = source.dense.view.dtype;
  check_packable(dtype, name);
  const Target target = make_target(values, source.info(layout, dtype, transposed));
  clear_padding(target, device);
  Tensor verdict = pack_into(target, source, selection, device);
  return {target.packed, verdict};
}

Selection selection_of(bool prune, const std::optional<Tensor>& mask) {
  if (prune && mask) {
    refuse("prune=True chooses what is kept, and a mask does too; pass one of them");
  }
  return prune ? Selection::kMagnitude : Selection::kVerify;
}

}  // namespace

void check_24(const Tensor& verdict, std::int64_t inputs, const std::string& name) {
  guarded([&] {
    const OnDevice device(verdict);
    const auto sizes = sizes_of(verdict);
    if (dtype_of(verdict, "verdict") != DType::kInt64 || sizes.size() != 2 ||
        sizes[1] != kVerdictNumbers || !verdict.is_contiguous()) {
      refuse(fmt::format("verdict is {} {}: what pack_24 or quantize_pack_24 returned is accepted",
                         dtype_name(dtype_of(verdict, "verdict")), shape_text(sizes)));
    }
    std::vector<Verdict> found(static_cast<std::size_t>(sizes[0]));
    cuda::read_device(found.data(), verdict.const_data_ptr(), found.size() * sizeof(Verdict),
                      device.stream());
    for (std::size_t b = 0; b < found.size(); ++b) {
      const std::string where = found.size() > 1 ? fmt::format("batch {}, ", b) : std::string();
      const auto columns = static_cast<std::uint64_t>(inputs);
      if (const std::uint64_t place = found[b].violation; place != cuda::kNowhere) {
        throw Error(
            ErrorCode::kPatternViolation,
            fmt::format("weight '{}' {}row {}, columns {}–{}: more than 2 non-zeros, 2:4 allows 2; "
                        "prune it first (gossamer.Magnitude(\"2:4\")) or keep it dense",
                        name, where, place / columns, place % columns,
                        std::min(place % columns + 3, columns - 1)));
      }
      if (const std::uint64_t place = found[b].not_finite; place != cuda::kNowhere) {
        refuse(
            fmt::format("weight '{}' {}row {}, column {}: the weight holds NaN or infinity and "
                        "cannot be quantized; look for what put it there",
                        name, where, place / columns, place % columns));
      }
    }
    return 0;
  });
}

std::tuple<Tensor, Tensor> pack_24(const Tensor& values, const std::optional<Tensor>& mask,
                                   const std::string& layout, bool transposed, bool prune) {
  return guarded([&] {
    return packed_and_verdict(values, mask, layout_of(layout, "weight"), transposed,
                              selection_of(prune, mask), "weight");
  });
}

Tensor verify_24(const Tensor& values, const std::optional<Tensor>& mask) {
  return guarded([&] {
    const OnDevice device(values);
    const Source source(values, mask, "weight");
    check_packable(source.dense.view.dtype, "weight");
    return verified(source, device);
  });
}

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
    const auto [packed, verdict] = packed_and_verdict(values, mask, layout_of(layout, name),
                                                      transposed, Selection::kVerify, name);
    check_24(verdict, sizes_of(values).back(), name);
    return packed;
  });
}

Tensor prune_pack_24(const Tensor& values, bool transposed) {
  return guarded([&] {
    return std::get<0>(packed_and_verdict(values, std::nullopt, Layout::kNm24Tiles, transposed,
                                          Selection::kMagnitude, "weight"));
  });
}

std::tuple<Tensor, Tensor, Tensor> quantize_pack_24(const Tensor& values,
                                                    const std::optional<Tensor>& mask,
                                                    ScalarType dtype, const std::string& layout,
                                                    bool prune) {
  return guarded([&] {
    const OnDevice device(values);
    const Selection selection = selection_of(prune, mask);
    const Source source(values, mask, "weight");
    const MatrixView& view = source.dense.view;
    const DType to = from_scalar_type(dtype);
    if (to != DType::kInt8 && to != DType::kFloat8E4M3) {
      refuse(fmt::format("dtype {}: int8 and float8_e4m3fn are accepted", dtype_name(to)));
    }
    if (view.dtype != DType::kFloat32 && view.dtype != DType::kBFloat16 &&
        view.dtype != DType::kFloat16) {
      refuse(
          fmt::format("the weight is {}: float32, float16 and bfloat16 are quantized on a GPU; "
                      "convert it with .to(torch.float32)",
                      dtype_name(view.dtype)));
    }
    if (sizes_of(values).size() != 2) {
      refuse(fmt::format("the weight has shape {}: [out, in] is quantized",
                         shape_text(sizes_of(values))));
    }
    const Target target = make_target(values, source.info(layout_of(layout, "weight"), to, false));
    clear_padding(target, device);
    const std::array<std::int64_t, 1> rows{view.rows};
    Tensor scale = empty_on(values, rows, DType::kFloat32);
    Tensor verdict = new_verdict(values, 1);
    cuda::quantize_pack_sp24(source.matrix(0), target.header, target.data(),
                             matrix_of(target.header, target.data(), 0), selection,
                             static_cast<float*>(scale.mutable_data_ptr()),
                             static_cast<Verdict*>(verdict.mutable_data_ptr()), device.stream());
    publish(device);
    return std::tuple<Tensor, Tensor, Tensor>(target.packed, scale, verdict);
  });
}

void pack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask) {
  guarded([&] {
    check_device(values, "values", packed);
    const OnDevice device(packed);
    const Source source(values, mask, "values");
    if (!is_aligned(packed)) {
      refuse(
          "pack_: the packed weight does not begin at a multiple of 16 bytes, where kernels write; "
          "pack into an aligned one, packed.clone(), and copy that back");
    }
    const Target target{checked_header(packed, device), packed};
    const PackedHeader& h = target.header;
    const MatrixView& view = source.dense.view;
    if (!is_read_here(detail::info_of(h))) {
      refuse(
          "pack_: the packed weight is not 2:4 in tiles or the format nm, which is what is packed "
          "on a GPU; pack it on the CPU");
    }
    if (view.batch != h.batch || view.rows != h.out || view.cols != h.in || view.dtype != h.dtype) {
      refuse(
          fmt::format("pack_: values are {} {}, the packed weight [{}, {}, {}] ([batch, out, "
                      "in]) {}; both must be the same",
                      shape_text(sizes_of(values)), dtype_name(view.dtype), h.batch, h.out, h.in,
                      dtype_name(h.dtype)));
    }
    // Before anything is written: a refused call leaves the weight what it was.
    check_24(verified(source, device), h.in, "values");
    pack_into(target, source, Selection::kVerify, device);
    return 0;
  });
}

void publish_(const Tensor& packed) {
  guarded([&] {
    publish(OnDevice(packed));
    return 0;
  });
}

}  // namespace gossamer::door::cuda_ops
