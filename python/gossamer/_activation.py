# SPDX-License-Identifier: BSD-3-Clause
"""The activations that an operator applies to its result, and the gradients of the smooth ones."""

from __future__ import annotations

import enum

import torch
from torch import Tensor


class Activation(enum.IntEnum):
    """The `activation` argument of `linear`; the numbers are those of gossamer/activation.h."""

    NONE = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4
    RELU2 = 5


def apply_activation(y: Tensor, activation: int) -> Tensor:
    """act(y) by torch's own operators, of any shape and floating dtype."""
    match activation:
        case Activation.NONE:
            return y
        case Activation.RELU:
            return y.relu()
        case Activation.GELU:
            return torch.nn.functional.gelu(y)
        case Activation.GELU_TANH:
            return torch.nn.functional.gelu(y, approximate="tanh")
        case Activation.SILU:
            return torch.nn.functional.silu(y)
        case Activation.RELU2:
            return y.relu().square()
    accepted = ", ".join(f"{int(a)} ({a.name.lower()})" for a in Activation)
    raise ValueError(f"activation {activation}: accepted are {accepted}")


def smooth_backward(grad: Tensor, y: Tensor, activation: int) -> Tensor:
    """The gradient of act(y), y [..., out], for the activations that are not piecewise linear."""
    if activation == Activation.RELU2:
        return grad * (2 * y.relu())
    if activation == Activation.SILU:
        return torch.ops.aten.silu_backward(grad, y)
    approximate = "none" if activation == Activation.GELU else "tanh"
    return torch.ops.aten.gelu_backward(grad, y, approximate=approximate)
