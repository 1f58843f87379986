// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "gossamer/linear.h"

namespace gossamer::plan {

/// X, Y, bias and residual of a timed call: random normal numbers, the same in every process.
class CallInputs {
 public:
  CallInputs(const LinearDesc& desc, const ParallelFor& parallel);

  /// Bytes that a call with so many tokens needs.
  std::int64_t bytes(std::int64_t tokens) const;

  /// Arguments for a call on `weight`; grows the memory where it must. Valid until the next call
  /// with more tokens.
  LinearArgs args(const PackedView& weight, std::int64_t tokens);

  /// What a quantized call costs before the product: X and its scales from float32 inputs, for no
  /// more tokens than `args` was asked for.
  void quantize(std::int64_t tokens);

 private:
  struct Release {
    void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  using Buffer = std::unique_ptr<std::byte, Release>;

  Buffer random_elements(std::int64_t bytes_wanted, const std::vector<std::byte>& tile) const;
  std::int64_t result_bytes() const;

  LinearDesc desc_;
  ParallelFor parallel_;
  std::vector<std::byte> tile_;                ///< random elements, repeated where more are needed
  std::vector<std::byte> result_tile_;         ///< the same in the dtype of Y, bias and residual
  std::vector<float> x_scale_, weight_scale_;  ///< of quantized calls
  std::int64_t tokens_ = 0;
  Buffer x_, y_, bias_, residual_;
  Buffer float_x_;  ///< of quantized calls
};

}  // namespace gossamer::plan
