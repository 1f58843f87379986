// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "core/layouts.h"
#include "cuda/pack_sp24.h"
#include "torch/cuda_bridge.h"

/// Packed 2:4 weights on a GPU, as the operators that write and read them share it.
namespace gossamer::door::cuda_ops {

/// A packed tensor for a weight, and the header that it will have.
struct Target {
  PackedHeader header;
  Tensor packed;
  std::byte* data() const { return static_cast<std::byte*>(packed.mutable_data_ptr()); }
};

/// New memory on the device of `like`, not initialised.
Target make_target(const Tensor& like, const FormatInfo& info);

/// Zeros between and after the arrays, so that equal weights are equal bytes.
void clear_padding(const Target& target, const OnDevice& device);

/// Kernels that read a weight may begin before their predecessor has ended; after this call all
/// that was written before it is visible.
void publish(const OnDevice& device);

/// Where matrix `batch` of a weight in the format nm or in tiles lies.
cuda::PackedMatrix matrix_of(const PackedHeader& header, std::byte* packed, std::int64_t batch);

/// The header of a weight on the GPU; waits for the stream. Refuses one whose arrays do not lie
/// where its shape says.
PackedHeader checked_header(const Tensor& packed, const OnDevice& device);

/// Whether the kernels here read such a weight: 2:4, of 8 or 16 bits, in tiles or the format.
bool is_read_here(const FormatInfo& info);

/// [batch,] out, in with contiguous columns, as the kernels read it.
struct Dense {
  Tensor tensor;
  MatrixView view;
};
Dense dense_of(const Tensor& tensor, const char* name);

/// One matrix of a stack.
cuda::DenseWeight weight_of(const MatrixView& view, std::int64_t batch);

}  // namespace gossamer::door::cuda_ops
