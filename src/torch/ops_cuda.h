// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch/cuda_bridge.h"

/// The operators of torch.ops.gossamer on CUDA tensors; the same schemas as on the CPU
/// (registration.cpp). What is not here is answered by way of the CPU
/// (python/gossamer/_ops_cuda.py).
namespace gossamer::door::cuda_ops {

// ops_cuda_linear.cpp
Tensor linear(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
              std::int64_t activation, const std::optional<Tensor>& residual,
              const std::optional<Tensor>& dense);
/// linear without scale, activation, residual and dense copy.
Tensor linear_plain(const Tensor& x, const Tensor& packed, std::int64_t layout, std::int64_t out,
                    const std::optional<Tensor>& bias);
/// The product of a quantized X and a quantized weight (LinearSp24Args says of what dtypes).
Tensor linear_quantized(const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& packed,
                        std::int64_t layout, std::int64_t out,
                        const std::optional<Tensor>& weight_scale,
                        const std::optional<Tensor>& bias, std::int64_t activation,
                        const std::optional<Tensor>& residual, ScalarType dtype, bool accurate);
Tensor linear_dx(const Tensor& grad, const Tensor& packed, std::int64_t layout, std::int64_t inputs,
                 const std::optional<Tensor>& dense);
/// The kernel that `linear` would run for x [tokens, in] and `out` outputs, told `layout`; "" where
/// none does.
std::string cuda_kernel(const Tensor& x, std::int64_t out, std::int64_t layout);
/// The rows of the GPU's kernel table, with the reason where one does not run this product, and the
/// numbers by which the argument `layout` names them.
std::string cuda_kernel_table(const Tensor& x, std::int64_t out);

// ops_cuda_quantize.cpp
/// Rows of x divided by a scale each, as float8_e4m3fn or int8, and the scales.
std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x, ScalarType dtype);

// ops_cuda_pack.cpp
Tensor pack(const Tensor& values, const std::optional<Tensor>& mask, const std::string& pattern,
            const std::string& layout, bool transposed, const std::string& name);
/// Writes over a packed weight of the same shape and dtype; its plan stays.
void pack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask);
/// The packed weight, and what is wrong with it, int64 [batch, 2] on the device: row · in + column
/// of the first group that keeps more than two, and of the first number that is not finite (only
/// looked for where a weight is quantized); −1 where there is none. Nothing waits. `prune` keeps
/// the two largest magnitudes of each group.
std::tuple<Tensor, Tensor> pack_24(const Tensor& values, const std::optional<Tensor>& mask,
                                   const std::string& layout, bool transposed, bool prune);
/// The same of a float32, float16 or bfloat16 weight [out, in] as int8 or float8_e4m3fn, with the
/// scales, float32 [out], before the verdict.
std::tuple<Tensor, Tensor, Tensor> quantize_pack_24(const Tensor& values,
                                                    const std::optional<Tensor>& mask,
                                                    ScalarType dtype, const std::string& layout,
                                                    bool prune);
/// Products begin to read a weight before the kernel in front of them has ended. After this call
/// they see what a kernel that is not Gossamer's wrote into `packed`.
void publish_(const Tensor& packed);
/// The verdict alone; reads the weight and writes nothing else.
Tensor verify_24(const Tensor& values, const std::optional<Tensor>& mask);
/// Waits for a verdict on a weight of so many inputs, and throws where it is not −1 throughout.
void check_24(const Tensor& verdict, std::int64_t inputs, const std::string& name);
/// Prunes to 2:4 by magnitude and packs into tiles, in one pass over the weight.
Tensor prune_pack_24(const Tensor& values, bool transposed);

// ops_cuda_unpack.cpp
Tensor unpack(const Tensor& packed, const std::vector<std::int64_t>& shape, ScalarType dtype);
Tensor unpack_mask(const Tensor& packed, const std::vector<std::int64_t>& shape);
void unpack_(const Tensor& packed, const Tensor& values, const std::optional<Tensor>& mask);
Tensor convert(const Tensor& packed, const std::string& layout);
/// unpack of a weight in tiles whose header is not read: nothing waits, and a graph captures it.
/// `layout` is the argument of the products, and tells the dtype.
Tensor unpack_tiles(const Tensor& packed, std::int64_t layout,
                    const std::vector<std::int64_t>& shape, ScalarType dtype);
/// The same of what is known to be such a weight.
Tensor unpacked_tiles(const Tensor& packed, const FormatInfo& info);
/// Waits for the header, and refuses a weight of another layout, dtype or shape than `info`.
void check_header(const Tensor& packed, const FormatInfo& info);

// ops_cuda_prune.cpp; transposable_mask of other patterns than 2:4 goes by way of the CPU.
/// The mask [.., in] that keeps N of every M neighbours; groups start anew after `segment` columns.
Tensor select_groups(const Tensor& scores, std::int64_t n, std::int64_t m, std::int64_t segment);
/// Waits for the GPU, which says whether all scores are finite.
Tensor transposable_mask(const Tensor& scores, std::int64_t n, std::int64_t m);
/// Sweeps columns [begin, end) of weight and, where m is not 0, writes their mask; returns what
/// each dropped weight owes to the columns right of them, [out, end - begin].
Tensor obs_sweep_block_(const Tensor& weight, const Tensor& factor, const Tensor& mask,
                        std::int64_t begin, std::int64_t end, std::int64_t n, std::int64_t m,
                        std::int64_t segment);

}  // namespace gossamer::door::cuda_ops
