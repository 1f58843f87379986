// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "gossamer/packed_weight.h"
#include "torch/bridge.h"

/// What the operators on CUDA tensors share. A packed weight on a GPU has its header there too, and
/// reading it back would wait for the GPU: what a launch needs comes from the call's own arguments.
namespace gossamer::door {

/// Makes the device of a tensor the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor)
      : index_(tensor.get_device_index()), guard_(tensor.get_device_index()) {}
  int index() const { return static_cast<int>(index_); }
  /// torch's current stream of this device.
  void* stream() const;

 private:
  std::int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

/// A new contiguous tensor on the device of `like`, not initialised.
Tensor empty_on(const Tensor& like, std::span<const std::int64_t> sizes, DType dtype);

/// Whether it begins where kernels read 16 bytes at once.
bool is_aligned(const Tensor& packed);
/// The same bytes where kernels may read them: a copy of what is not aligned, which an access of a
/// kernel would answer with an error that ends every later call of the process.
Tensor aligned(const Tensor& packed);

/// Refuses a tensor that is not on the device of `weight`.
void check_device(const Tensor& tensor, const char* name, const Tensor& weight,
                  const char* weight_name = "the packed weight");

/// Bytes of a 2:4 weight in tiles.
FormatInfo tiles_info(DType dtype, std::int64_t batch, std::int64_t out, std::int64_t in,
                      bool transposed);

/// Refuses an operator's argument `layout` of another layout than tiles.
void check_layout(std::int64_t argument);

/// The header of a packed weight on the GPU. Waits for the stream.
PackedHeader read_header(const Tensor& packed, const OnDevice& device);

/// `name`("") of the dispatcher, on a stack that begins with its arguments and ends with its
/// result.
void call_operator(const char* name, StableIValue* stack);

}  // namespace gossamer::door
