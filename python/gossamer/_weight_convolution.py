# SPDX-License-Identifier: BSD-3-Clause
"""The convolutions of a packed weight [out, channels, height, width]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer import _ops  # noqa: F401  (loads the operators)
from gossamer._activation import apply_activation
from gossamer._convolution import paddings, pair
from gossamer._quantization import checked_scale
from gossamer._weight_products import ACTIVATIONS, check_requantizes, following, is_transformed
from gossamer._weight_tables import function
from gossamer.weight import SparseWeight

__all__ = ["conv2d", "convolution", "convolution_as_torch", "convolution_call"]

_conv2d_op: Any = torch.ops.gossamer.conv2d.default
_conv2d_autograd_op: Any = torch.ops.gossamer.conv2d_autograd.default
_conv2d_eager: Any = _conv2d_op._op
_conv2d_int8_op: Any = torch.ops.gossamer.conv2d_int8.default
_conv2d_int8_autograd_op: Any = torch.ops.gossamer.conv2d_int8_autograd.default
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


def conv2d(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_scale: float | None = None,
) -> Tensor:
    """act(conv2d(x, W) + bias + residual) in one operator, with one group.

    Args:
        x: [images, channels, height, width] or [channels, height, width], float32. Of a weight
            with an `input_scale` also int8, rounded with it.
        weight: [out, channels, height, width].
        bias: [out].
        stride: one number or (height, width).
        padding: one number, (height, width), (top, bottom, left, right), "same" or "valid"; zeros.
        dilation: one number or (height, width).
        activation: None, "relu", "gelu", "gelu_tanh", "silu" or "relu2".
        residual: shape of the result, added before the activation.
        out_scale: as for `gossamer.linear`: the result becomes int8.

    Returns:
        [images, out, height, width] (or three dimensions, as x has) in the memory format of x.

    Raises:
        ValueError: shapes, dtypes, scales or the activation do not fit.
    """
    if activation not in ACTIVATIONS:
        accepted = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation {activation!r}: accepted are {accepted}")
    code = int(ACTIVATIONS[activation])
    result = 0.0
    if out_scale is not None:
        check_requantizes(weight)
        result = checked_scale("out_scale", out_scale)
    return convolution(x, weight, bias, stride, padding, dilation, 1, code, residual, result)


@function(torch.nn.functional.conv2d)
def _handle_conv2d(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return convolution_call(*args, **kwargs)


def convolution_as_torch(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """`F.conv2d` as `nn.Conv2d` calls it: what a model spends its calls on."""
    kernel = weight._facts.kernel
    if (
        _is_dynamo_compiling()
        or kernel is None
        or groups != 1
        or weight.dense is not None
        or weight._facts.input_scale
        or not (type(stride) is type(padding) is type(dilation) is tuple)
        or _is_any_autocast_enabled()
        or type(x) is SparseWeight
        or is_transformed()
    ):
        return convolution_call(x, weight, bias, stride, padding, dilation, groups)
    if _is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        op = _conv2d_autograd_op
    else:
        op = _conv2d_eager
    code, out = weight.layout_code, weight.out_features
    if weight.scale is not None:
        rest = (bias, 0, None, None, weight.scale)
        return op(x, weight.packed, code, out, kernel, stride, padding, dilation, *rest)
    return op(x, weight.packed, code, out, kernel, stride, padding, dilation, bias)


def convolution_call(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` with any of its tensors packed."""
    if not isinstance(weight, SparseWeight) or isinstance(input, SparseWeight):
        raise NotImplementedError(
            "conv2d: only its weight may be packed; take .to_dense() of the other tensors"
        )
    return convolution(input, weight, bias, stride, padding, dilation, groups)


def convolution(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: int = 0,
    residual: Tensor | None = None,
    out_scale: float = 0.0,
) -> Tensor:
    """act(conv2d(x, W) + bias + residual) as `F.conv2d` takes its arguments.

    `out_scale` above 0 asks for an int8 result.
    """
    kernel = weight.kernel_size
    if kernel is None:
        raise ValueError(
            f"conv2d: the packed weight {list(weight.shape)} is no convolution's; pack four "
            "dimensions [out, channels, height, width]"
        )
    if groups != 1:
        raise NotImplementedError(
            f"conv2d: groups is {groups}; a packed weight is computed with one group only. Take "
            "weight.to_dense(), or unpack the model with gossamer.desparsify_(model)"
        )
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    sides = paddings(padding, kernel, strides, dilations)
    result_dtype = None
    if torch.is_autocast_enabled("cpu") and x.is_floating_point():
        # As for linear: the packed weight keeps its dtype, the inputs follow.
        result_dtype = None if out_scale else torch.get_autocast_dtype("cpu")
        x, bias, residual = following(weight.dtype, x, bias, residual)
    if is_transformed():
        y = _dense_convolution(x, weight, bias, strides, sides, dilations, activation, residual)
    else:
        operands = () if out_scale else (x, bias, residual)
        needs_grad = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in operands
        )
        layer = (weight.layout_code, weight.out_features, kernel, strides, sides, dilations)
        after = (bias, activation, residual, weight.dense)
        if out_scale or weight._facts.input_scale:
            op = _conv2d_int8_autograd_op if needs_grad else _conv2d_int8_op
            scales = (weight.scale, weight._facts.input_scale, out_scale)
            y = op(x, weight.packed, *layer, *scales, *after)
        else:
            op = _conv2d_autograd_op if needs_grad else _conv2d_op
            y = op(x, weight.packed, *layer, *after, weight.scale)
    return y if result_dtype is None else y.to(result_dtype)


def _dense_convolution(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, ...],
    dilation: tuple[int, int],
    activation: int,
    residual: Tensor | None,
) -> Tensor:
    """The same as `convolution`, of operators that every transform knows."""
    values = weight.to_dense() if weight.dense is None else weight.dense
    sides = padding
    if len(padding) == 4:
        top, bottom, left, right = padding
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        sides = (0, 0)
    y = torch.nn.functional.conv2d(x, values, bias, stride, sides, dilation)
    if residual is not None:
        y = y + residual
    return apply_activation(y, activation)
