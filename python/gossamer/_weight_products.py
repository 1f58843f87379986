# SPDX-License-Identifier: BSD-3-Clause
"""The products of a packed weight, and which operator computes each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gossamer import _ops  # noqa: F401  (loads the operators)
from gossamer._activation import Activation, apply_activation
from gossamer._layout_argument import with_result_dtype
from gossamer._quantization import checked_scale
from gossamer.weight import SparseWeight

ACTIVATIONS = {
    None: Activation.NONE,
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "relu2": Activation.RELU2,
}

# Looked up once: a name in torch.ops costs as much as the call. `_linear_eager` is what calling
# `_linear_op` calls, one Python frame earlier; Dynamo follows only the latter.
# `_linear_plain_eager` is the same product with fewer arguments, each of which costs; graphs never
# hold it.
_linear_op: Any = torch.ops.gossamer.linear.default
_linear_autograd_op: Any = torch.ops.gossamer.linear_autograd.default
_linear_dx_op: Any = torch.ops.gossamer.linear_dx.default
_linear_eager: Any = _linear_op._op
_linear_plain_eager: Any = torch.ops.gossamer.linear_plain.default._op
_linear_int8_op: Any = torch.ops.gossamer.linear_int8.default
_linear_int8_autograd_op: Any = torch.ops.gossamer.linear_int8_autograd.default
_F_linear: Any = torch.nn.functional.linear
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_functorch_active = torch._C._are_functorch_transforms_active


def linear(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    out_scale: float | None = None,
) -> Tensor:
    """act(x·Wᵀ + bias + residual) in one operator.

    Args:
        x: [..., in], dtype of the weight; [batch, tokens, in] where the weight is a stack. Of a
            weight with an `input_scale` also int8, rounded with it.
        weight: [out, in], or a transposed [in, out].
        bias: [out], or [batch, out] for a stack; of the result's dtype or x's.
        activation: None, "relu", "gelu" (the error function's), "gelu_tanh" (its approximation by
            tanh), "silu" or "relu2" (ReLU squared).
        residual: shape and dtype of the result, added before the activation.
        output_dtype: what the float32 sums are rounded to: torch.bfloat16, torch.float16 or
            torch.float32 on a GPU; None, and elsewhere: the dtype of x. Not with `out_scale`.
        out_scale: of an int8 weight on the CPU: the result becomes int8, divided by this and
            rounded to nearest, at most 127 either way (0 for NaN). The `input_scale` of the layer
            that takes it.

    Returns:
        [..., out], `output_dtype`, or int8 with `out_scale`.

    Raises:
        ValueError: shapes, dtypes, scales or the activation do not fit.
    """
    if activation not in ACTIVATIONS:
        accepted = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation {activation!r}: accepted are {accepted}")
    code = int(ACTIVATIONS[activation])
    if out_scale is None:
        return product(x, weight, bias, code, residual, output_dtype)
    if output_dtype is not None:
        raise ValueError(
            f"output_dtype {output_dtype} and out_scale {out_scale} are both given: with out_scale "
            "results are int8; leave one of them None"
        )
    check_requantizes(weight)
    scale = checked_scale("out_scale", out_scale)
    if torch.is_autocast_enabled("cpu") and x.is_floating_point():
        x, bias, residual = following(weight.dtype, x, bias, residual)
    return product_int8(x, weight, bias, code, residual, scale)


def following(
    dtype: torch.dtype, x: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The operands under autocast: F.linear would cast the weight to them; a packed one stays."""
    bias = None if bias is None else bias.to(dtype)
    return x.to(dtype), bias, None if residual is None else residual.to(dtype)


def check_requantizes(weight: SparseWeight) -> None:
    """Raises ValueError where a weight cannot give int8 results."""
    is_int8 = weight.scale is not None and weight._facts.dtype is torch.int8
    if not is_int8 or weight.transposed or weight.packed.device.type != "cpu":
        raise ValueError(
            f"out_scale is given, and the weight is {weight!r} on {weight.device}: results become "
            "int8 behind int8 weights on the CPU that are not transposed; leave it None"
        )


def linear_as_torch(x: Tensor, weight: SparseWeight, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x·weightᵀ + bias. What a model spends its calls on.

    The first branch is written for a call whose code and objects have left the nearest caches
    behind a large product, which makes it take five times as long: few objects, no further frame.
    Where dense runs, autocast and transforms are torch's own affair.
    """
    quick = weight._quick
    if quick is not None and type(x) is Tensor and not is_dynamo_compiling():
        dense_whole, dense_quarter, inputs, dense, is_plain, arguments = quick
        if dense_whole or dense_quarter:
            before = x.numel() // inputs - 1
            size = before.bit_length()
            if dense_whole >> size & 1 or (dense_quarter >> size & 1 and before >> size - 3 == 4):
                return _F_linear(x, dense, bias)
        if (
            not (_is_grad_enabled() and (x.requires_grad or _has_gradient(bias)))
            and not _is_any_autocast_enabled()
            and not _is_functorch_active()
            and forward_ad._current_level < 0
        ):
            return (_linear_plain_eager if is_plain else _linear_eager)(x, *arguments, bias)
    is_compiling = is_dynamo_compiling()
    if weight._is_direct and not is_unusual(x, is_compiling):
        return call(x, weight, bias, is_compiling)
    return _linear_general(x, weight, bias)


def is_unusual(x: Tensor, is_compiling: bool) -> bool:
    """Autocast, a transform or a product of two packed weights: more than one operator's call."""
    return (
        type(x) is SparseWeight
        or forward_ad._current_level >= 0
        or _is_any_autocast_enabled()
        or (not is_compiling and _is_functorch_active())
    )


def call(x: Tensor, weight: SparseWeight, bias: Tensor | None, is_compiling: bool) -> Tensor:
    """x·Wᵀ + bias, W the logical [out, in] without a dense copy: the shortest way there is."""
    if _needs_grad(x, bias):
        return _linear_autograd_op(x, *weight._linear_arguments, bias)
    if is_compiling:
        return _linear_op(x, *weight._linear_arguments, bias)
    return call_eager(x, weight, bias)


def _needs_grad(x: Tensor, bias: Tensor | None) -> bool:
    return _is_grad_enabled() and (x.requires_grad or _has_gradient(bias))


def _has_gradient(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def call_eager(x: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
    """`call` where nothing is compiled and nothing has a gradient."""
    plain = weight._plain_arguments
    if plain is not None and type(x) is Tensor:
        return _linear_plain_eager(x, *plain, bias)
    return _linear_eager(x, *weight._linear_arguments, bias)


def refuse_convolution(weight: SparseWeight) -> None:
    """Raises ValueError where a product is asked of a convolution's weight."""
    if weight.kernel_size is not None:
        raise ValueError(
            f"the packed weight {list(weight.shape)} is a convolution's, not a matrix: use it with "
            "torch.nn.functional.conv2d, or take weight.to_dense()"
        )


def _linear_general(x: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
    """`F.linear` with a dense copy or a weight stored transposed, under autocast or a transform."""
    if isinstance(x, SparseWeight):
        raise NotImplementedError(
            "linear: x is a SparseWeight too; a product of two packed weights is not computed, use "
            "x.to_dense()"
        )
    if weight.transposed:
        y = times_logical(x, weight)
        return y if bias is None else y + bias
    return product(x, weight, bias, 0, None)


def product(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    activation: int,
    residual: Tensor | None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """act(x·Wᵀ + bias + residual) with W the logical [out, in], whatever the orientation."""
    result_dtype = None
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point():
        # F.linear would cast the weight; a packed weight keeps its dtype and the inputs follow,
        # which is exact. The result has autocast's dtype, as the layers behind it expect.
        result_dtype = output_dtype or torch.get_autocast_dtype(device)
        x = x.to(weight.dtype)
        bias = None if bias is None else bias.to(weight.dtype)
        residual = None if residual is None else residual.to(output_dtype or weight.dtype)
    layout = weight._layout_argument
    if output_dtype is not None:
        layout = with_result_dtype(layout, x, output_dtype)
    if is_transformed():
        y = _dense_product(x, weight, bias, activation, residual, output_dtype)
    elif weight._facts.input_scale:
        y = product_int8(x, weight, bias, activation, residual, 0.0)
    else:
        operands = (x, bias, residual)
        needs_grad = _is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
        y = (_linear_autograd_op if needs_grad else _linear_op)(
            x,
            weight.packed,
            layout,
            weight.out_features,
            weight.scale,
            bias,
            activation,
            residual,
            weight.dense,
        )
    return y if result_dtype is None else y.to(result_dtype)


def product_int8(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    activation: int,
    residual: Tensor | None,
    out_scale: float,
) -> Tensor:
    """`product` with a scale of x that was calibrated, or an int8 result (`out_scale` above 0)."""
    operands = () if out_scale else (x, bias, residual)
    needs_grad = _is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    return (_linear_int8_autograd_op if needs_grad else _linear_int8_op)(
        x,
        weight.packed,
        weight.layout_code,
        weight.out_features,
        weight.scale,
        weight._facts.input_scale,
        out_scale,
        weight._facts.quantized,  # weight.dtype would ask __torch_function__
        bias,
        activation,
        residual,
        weight.dense,
    )


def times_logical(x: Tensor, weight: SparseWeight) -> Tensor:
    """x·W with W the logical [out, in]: the product that dX needs."""
    if is_transformed() or weight.scale is not None:
        return x @ _logical_values(weight)
    if x.shape[-1] != weight.out_features:
        raise ValueError(
            f"x has shape {list(x.shape)}, the packed weight is [{weight.out_features}, "
            f"{weight.in_features}] ([out, in]): x must be [..., {weight.out_features}]"
        )
    argument = weight._layout_argument
    return _linear_dx_op(x, weight.packed, argument, weight.in_features, weight.dense)


# --- Under transforms -----------------------------------------------------------------------------


def is_transformed() -> bool:
    """Inside torch.func (vmap, grad, jvp, ...) or forward-mode differentiation.

    A custom operator has no forward-mode formula and torch.func does not take its gradient: the
    tangents and gradients of the packed operators would be zero there without a word.
    """
    if forward_ad._current_level >= 0:
        return True
    return not is_dynamo_compiling() and _is_functorch_active()


def _logical_values(weight: SparseWeight) -> Tensor:
    """[[batch,] out, in], whatever the orientation: the dense copy, or unpacked for this call."""
    refuse_convolution(weight)
    if weight.dense is not None:
        return weight.dense
    return weight._logical_values()


def _dense_product(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    activation: int,
    residual: Tensor | None,
    output_dtype: torch.dtype | None,
) -> Tensor:
    """The same as `product`, of operators that every transform knows."""
    values = _logical_values(weight).mT
    if output_dtype is not None and output_dtype != x.dtype:
        # Rounded once, at the end.
        y = _dense_sum(x.float(), values.float(), weight, bias, residual)
        return apply_activation(y, activation).to(output_dtype)
    return apply_activation(_dense_sum(x, values, weight, bias, residual), activation)


def _dense_sum(
    x: Tensor,
    values: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    y = x @ values
    if bias is not None:
        y = y + (bias if weight.dim() == 2 else bias.unsqueeze(-2))
    return y if residual is None else y + residual
