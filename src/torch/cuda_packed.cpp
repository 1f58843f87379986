// SPDX-License-Identifier: BSD-3-Clause
#include "torch/cuda_packed.h"

#include "cuda/transfer.h"

namespace gossamer::door::cuda_ops {

Target make_target(const Tensor& like, const FormatInfo& info) {
  const detail::LayoutSpec spec = detail::layout_spec(info, 0);
  Target target{detail::make_header(info, spec), {}};
  target.packed =
      empty_on(like, std::span<const std::int64_t>(&spec.total_bytes, 1), DType::kUInt8);
  return target;
}

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

void publish(const OnDevice& device) { cuda::order_device(device.stream()); }

cuda::PackedMatrix matrix_of(const PackedHeader& header, std::byte* packed, std::int64_t batch) {
  const auto part = [&](int array) {
    const auto& a = header.arrays[static_cast<std::size_t>(array)];
    return packed + a.offset + batch * (a.bytes / header.batch);
  };
  cuda::PackedMatrix matrix;
  matrix.dtype = header.dtype;
  matrix.out = header.out;
  matrix.in = header.in;
  if (header.layout == Layout::kNm24Tiles) {
    matrix.tiles = part(detail::Nm24TilesArrays::kTiles);
  } else {
    matrix.values = part(detail::NmArrays::kValues);
    matrix.indices = part(detail::NmArrays::kIndices);
  }
  return matrix;
}

PackedHeader checked_header(const Tensor& packed, const OnDevice& device) {
  const PackedHeader header = read_header(packed, device);
  const FormatInfo info = detail::info_of(header);
  const PackedHeader expected = detail::make_header(info, detail::layout_spec(info, header.kept));
  bool agrees = expected.total_bytes == header.total_bytes && expected.kept == header.kept &&
                expected.array_count == header.array_count;
  for (std::size_t i = 0; agrees && i < static_cast<std::size_t>(expected.array_count); ++i) {
    agrees = expected.arrays[i].offset == header.arrays[i].offset &&
             expected.arrays[i].bytes == header.arrays[i].bytes;
  }
  if (!agrees) {
    refuse("packed has a header that contradicts itself; it must come unchanged from pack()");
  }
  return header;
}

bool is_read_here(const FormatInfo& info) {
  const bool is_laid_out = info.format == Layout::kNm || info.format == Layout::kNm24Tiles;
  return dtype_bytes(info.dtype) <= 2 && info.pattern == Pattern::nm(2, 4) && is_laid_out;
}

Dense dense_of(const Tensor& tensor, const char* name) {
  Dense dense{tensor, mutable_matrix_view(tensor, name)};
  if (dense.view.cols > 1 && dense.view.col_stride != 1) {
    dense.tensor = as_contiguous(tensor);
    dense.view = mutable_matrix_view(dense.tensor, name);
  }
  return dense;
}

cuda::DenseWeight weight_of(const MatrixView& view, std::int64_t batch) {
  cuda::DenseWeight weight;
  weight.values = view.data + dtype_bytes(view.dtype) * batch * view.batch_stride;
  weight.row_stride = view.row_stride;
  weight.dtype = view.dtype;
  weight.out = view.rows;
  weight.in = view.cols;
  return weight;
}

}  // namespace gossamer::door::cuda_ops
