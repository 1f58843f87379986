# SPDX-License-Identifier: BSD-3-Clause
"""Shapes and gradients of `linear_int8` and `conv2d_int8`, whose inputs have a calibrated scale.

Both take x in a floating dtype, rounded at `x_scale`, or int8 that was rounded with it; `y_scale`
above 0 asks for an int8 result. Gradients are those of the unrounded x (straight through); an int8
result has none, as of `Tensor.to(torch.int8)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer._ops_gradients import (
    conv2d_backward,
    conv2d_setup,
    linear_backward,
    linear_setup,
)
from gossamer._ops_shapes import conv2d_fake

__all__: list[str] = []


def _result_dtype(y_scale: float, dtype: torch.dtype) -> torch.dtype:
    return torch.int8 if y_scale > 0 else dtype


def _linear_fake(
    x: Tensor,
    packed: Tensor,
    layout: int,
    out: int,
    scale: Tensor,
    x_scale: float,
    y_scale: float,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    activation: int = 0,
    residual: Tensor | None = None,
    dense: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out), dtype=_result_dtype(y_scale, dtype))


def _conv2d_fake(
    x: Tensor,
    packed: Tensor,
    layout: int,
    out: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: Tensor,
    x_scale: float,
    y_scale: float,
    bias: Tensor | None = None,
    activation: int = 0,
    residual: Tensor | None = None,
    dense: Tensor | None = None,
) -> Tensor:
    y = conv2d_fake(x, packed, layout, out, kernel, stride, padding, dilation)
    return torch.empty_like(y, dtype=_result_dtype(y_scale, torch.float32))


for _name, _fake in (("linear_int8", _linear_fake), ("conv2d_int8", _conv2d_fake)):
    torch.library.register_fake(f"gossamer::{_name}", _fake)
    torch.library.register_fake(f"gossamer::{_name}_autograd", _fake)


class _Context:
    """What the formulas of `_ops_gradients` read: the arguments without the scales of x and y.

    Saved tensors and numbers are the outer context's own.
    """

    def __init__(self, ctx: Any, needs: tuple[bool, ...]) -> None:
        self._ctx = ctx
        self.needs_input_grad = needs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, layout, out, scale, x_scale, _, _, *operands = inputs
    linear_setup(ctx, (x, packed, layout, out, scale, *operands), output)
    ctx.x_scale = x_scale


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = (*ctx.needs_input_grad, *[False] * 12)
    inner = _Context(ctx, (*needs[:5], *needs[8:12]))
    x, *rest = linear_backward(inner, grad)
    return x, *rest[:4], None, None, None, *rest[4:]


def _conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *weight, scale, x_scale, _, bias, activation, residual, dense = inputs
    conv2d_setup(ctx, (*weight, bias, activation, residual, dense, scale), output)
    ctx.x_scale = x_scale


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = (*ctx.needs_input_grad, *[False] * 15)
    inner = _Context(ctx, (*needs[:8], *needs[11:15], needs[8]))
    *weight, bias, activation, residual, dense, scale = conv2d_backward(inner, grad)
    return *weight, scale, None, None, bias, activation, residual, dense


torch.library.register_autograd(
    "gossamer::linear_int8_autograd", _linear_backward, setup_context=_linear_setup
)
torch.library.register_autograd(
    "gossamer::conv2d_int8_autograd", _conv2d_backward, setup_context=_conv2d_setup
)
