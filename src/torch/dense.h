// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>

#include "gossamer/activation.h"
#include "torch/bridge.h"

/// torch's own operators, on tensors of any device.
namespace gossamer::door {

/// act(x·denseᵀ + bias + residual) by aten::linear: the dense row of the kernel table.
Tensor dense_linear(const Tensor& x, const Tensor& dense, const std::optional<Tensor>& bias,
                    Activation activation, const std::optional<Tensor>& residual);

/// The number of an Activation; refuses any other.
Activation checked_activation(std::int64_t activation);

/// act(y) by torch's own operators.
Tensor activated(Tensor y, Activation activation);
/// a + b; the shim has no sum.
Tensor add(const Tensor& a, const Tensor& b);

}  // namespace gossamer::door
