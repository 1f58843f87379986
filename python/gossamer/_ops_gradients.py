# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of the input, the bias and the residual; a packed weight has none."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from gossamer import _library  # noqa: F401  (loads the operators)
from gossamer._activation import Activation, smooth_backward
from gossamer._layout_argument import FLOAT8_SHIFT
from gossamer._ops_shapes import paddings

__all__ = ["conv2d_backward", "conv2d_setup", "linear_backward", "linear_setup"]

_ops = torch.ops.gossamer


def _refuse_dense() -> NoReturn:
    raise RuntimeError(
        "the dense copy of a packed weight has no gradient: train the dense weight under a mask "
        "(a gossamer.Sparsifier prepared on the model), or unpack the model with "
        "gossamer.desparsify_(model)"
    )


def linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps what `linear_backward` reads of a call of `linear_autograd`."""
    x, packed, layout, out, scale, bias, activation, residual, dense = inputs
    # ReLU's gradient follows from its result; the smooth ones need what they were applied to, which
    # is computed again.
    relu = output if activation == Activation.RELU else None
    smooth = (x, bias, residual) if activation > Activation.RELU else (None, None, None)
    ctx.save_for_backward(packed, relu, dense, scale, *smooth)
    ctx.layout = layout
    ctx.out = out
    ctx.activation = activation
    ctx.inputs = x.shape[-1]
    ctx.x_dtype = x.dtype
    ctx.bias_dims = None if bias is None else bias.dim()
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.x_scale = 0.0


def linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `linear_autograd`'s nine arguments, of grad [..., out]."""
    packed, output, dense, scale, x, bias, residual = ctx.saved_tensors
    # Arguments that a call left out have no entry.
    needs_grad = (*ctx.needs_input_grad, *[False] * 9)
    if needs_grad[8]:
        _refuse_dense()
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    elif ctx.activation > Activation.RELU:
        weight = (packed, ctx.layout, ctx.out, scale)
        if ctx.x_scale:
            rounding = (ctx.x_scale, 0.0, grad.dtype)
            y = _ops.linear_int8(x, *weight, *rounding, bias, 0, residual, dense)
        else:
            y = _ops.linear(x, *weight, bias, 0, residual, dense)
        grad = smooth_backward(grad, y, ctx.activation)
    grad_x = grad_bias = None
    grad_product = grad.to(ctx.x_dtype)  # of another dtype where the result was asked in another
    if needs_grad[0] and scale is not None:
        # Straight through the rounding of x: the gradient of the product with the weight as it is.
        is_float8 = ctx.layout >> FLOAT8_SHIFT & 1
        kind = torch.float8_e4m3fn if is_float8 else torch.int8
        shape = [ctx.out, ctx.inputs]
        if packed.is_cuda:  # unpack would wait for the header
            values = _ops.unpack_tiles(packed, ctx.layout, shape, kind)
        else:
            values = _ops.unpack(packed, shape, kind)
        grad_x = (grad_product * scale.to(ctx.x_dtype)) @ values.to(ctx.x_dtype)
    elif needs_grad[0]:
        grad_x = _ops.linear_dx(grad_product, packed, ctx.layout, ctx.inputs, dense)
    if needs_grad[5]:
        # A stack's bias is [batch, out] and its result [batch, tokens, out].
        grad_bias = grad.sum(dim=1) if ctx.bias_dims == 2 else grad.flatten(0, -2).sum(dim=0)
        grad_bias = grad_bias.to(ctx.bias_dtype)
    grad_residual = grad if needs_grad[7] else None
    return grad_x, None, None, None, None, grad_bias, None, grad_residual, None


def _linear_dx_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, packed, layout, _, dense = inputs
    ctx.save_for_backward(packed, dense)
    ctx.layout = layout
    ctx.out = grad.shape[-1]


def _linear_dx_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, dense = ctx.saved_tensors
    y = _ops.linear_autograd(grad, packed, ctx.layout, ctx.out, dense=dense)
    return y, None, None, None, None


torch.library.register_autograd(
    "gossamer::linear_autograd", linear_backward, setup_context=linear_setup
)
torch.library.register_autograd(
    "gossamer::linear_dx", _linear_dx_backward, setup_context=_linear_dx_setup
)


def conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps what `conv2d_backward` reads of a call of `conv2d_autograd`."""
    x, packed, layout, out, kernel, stride, padding, dilation, *operands = inputs
    bias, activation, residual, dense, scale = operands
    relu = output if activation == Activation.RELU else None
    smooth = (x, bias, residual) if activation > Activation.RELU else (None, None, None)
    ctx.save_for_backward(packed, relu, dense, scale, *smooth)
    ctx.layout = layout
    ctx.out = out
    ctx.kernel = list(kernel)
    ctx.stride = list(stride)
    ctx.padding = list(padding)
    ctx.dilation = list(dilation)
    ctx.activation = activation
    ctx.input_shape = x.shape
    ctx.x_scale = 0.0


def _conv2d_dx(ctx: Any, grad: Tensor, values: Tensor) -> Tensor:
    """The gradient of x: the transposed convolution with the unpacked weight."""
    *images, channels, height, width = ctx.input_shape
    top, bottom, left, right = paddings(ctx.padding)
    batch = images[0] if images else 1
    padded = conv2d_input(
        (batch, channels, height + top + bottom, width + left + right),
        values,
        grad if images else grad.unsqueeze(0),
        stride=ctx.stride,
        dilation=ctx.dilation,
    )
    grad_x = padded[:, :, top : top + height, left : left + width]
    return grad_x if images else grad_x.squeeze(0)


def conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `conv2d_autograd`'s thirteen arguments, of grad in the result's shape."""
    packed, output, dense, scale, x, bias, residual = ctx.saved_tensors
    # Arguments that a call left out have no entry.
    needs_grad = (*ctx.needs_input_grad, *[False] * 13)
    if needs_grad[11]:
        _refuse_dense()
    numbers = (ctx.layout, ctx.out, ctx.kernel, ctx.stride, ctx.padding, ctx.dilation)
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    elif ctx.activation > Activation.RELU:
        if ctx.x_scale:
            rounding = (scale, ctx.x_scale, 0.0)
            y = _ops.conv2d_int8(x, packed, *numbers, *rounding, bias, 0, residual, dense)
        else:
            y = _ops.conv2d(x, packed, *numbers, bias, 0, residual, dense, scale)
        grad = smooth_backward(grad, y, ctx.activation)
    grad_x = grad_bias = None
    if needs_grad[0]:
        shape = (ctx.out, ctx.input_shape[-3], *ctx.kernel)
        if scale is not None:
            # Straight through the rounding of x, as for linear.
            values = _ops.unpack(packed, shape, torch.int8) * scale.reshape(-1, 1, 1, 1)
        else:
            values = dense if dense is not None else _ops.unpack(packed, shape, grad.dtype)
        grad_x = _conv2d_dx(ctx, grad, values)
    if needs_grad[8]:
        grad_bias = grad.sum(dim=(-2, -1)) if grad.dim() == 3 else grad.sum(dim=(0, 2, 3))
    grad_residual = grad if needs_grad[10] else None
    return grad_x, *[None] * 7, grad_bias, None, grad_residual, None, None


torch.library.register_autograd(
    "gossamer::conv2d_autograd", conv2d_backward, setup_context=conv2d_setup
)
