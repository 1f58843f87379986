# SPDX-License-Identifier: BSD-3-Clause
"""What a `SparseWeight` answers above autograd: functions and methods of torch."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor

from gossamer._weight_products import (
    _is_grad_enabled,
    call,
    call_eager,
    is_dynamo_compiling,
    is_unusual,
    linear_as_torch,
    product,
    times_logical,
)
from gossamer._weight_tables import function, refuse
from gossamer.weight import SparseWeight


def _refuse_gradient() -> NoReturn:
    raise RuntimeError(
        "a packed weight has no gradient of its own (the gradient of x flows through it): keep "
        "it with requires_grad=False, unpack it with gossamer.desparsify_(model), or train the "
        "dense weight under a mask with a sparsifier (gossamer.Magnitude and its kind: prepare, "
        "step, squash_mask)"
    )


@function(torch.nn.functional.linear)
def _handle_linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return linear_call(*args, **kwargs)


def linear_call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with any of its tensors packed."""
    if isinstance(weight, SparseWeight):
        return linear_as_torch(input, weight, bias)
    y = matmul(input, weight.mT)  # input or bias is packed; the same product written the other way
    return y if bias is None else y + bias


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a·b with one of them packed; batched where the packed one is a stack."""
    if isinstance(b, SparseWeight):
        if isinstance(a, SparseWeight):
            raise NotImplementedError(
                "matmul: a product of two packed weights is not computed; unpack one with "
                ".to_dense()"
            )
        return product(a, b, None, 0, None) if b.transposed else times_logical(a, b)
    assert isinstance(a, SparseWeight)
    # A·b = (bᵀ·Aᵀ)ᵀ; a vector is its own transpose.
    rows = b if b.dim() == 1 else b.mT
    y = times_logical(rows, a) if a.transposed else product(rows, a, None, 0, None)
    return y if b.dim() == 1 else y.mT


@function(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm
)
def _handle_matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("out") is not None or len(args) != 2:
        refuse(func)
    return matmul(args[0], args[1])


@function(Tensor.__rmatmul__)
def _handle_rmatmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return matmul(args[1], args[0])


def addmm_as_torch(bias: Tensor, x: Tensor, weight: SparseWeight) -> Tensor:
    """`torch.addmm(bias, x, weight)`: what a module that stores [in, out] calls (`Conv1D`)."""
    if (
        not weight._is_direct_transposed
        or x.ndim != 2
        or type(bias) is SparseWeight
        or is_unusual(x, is_dynamo_compiling())
    ):
        return addmm(torch.addmm, (bias, x, weight), {})
    if _is_grad_enabled() or is_dynamo_compiling():
        if bias.dim() != 1 or bias.numel() != weight.out_features:
            return addmm(torch.addmm, (bias, x, weight), {})
        return call(x, weight, bias, is_dynamo_compiling())
    try:  # each question to a tensor costs a tenth of a microsecond; the operator asks them anyway
        return call_eager(x, weight, bias)
    except ValueError:  # a bias of another shape, which is broadcast, or what addmm refuses
        return addmm(torch.addmm, (bias, x, weight), {})


@function(torch.addmm, Tensor.addmm)
def addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """beta·bias + alpha·a·b with a packed a or b."""
    scales = {"alpha": kwargs.pop("alpha", 1), "beta": kwargs.pop("beta", 1)}
    if kwargs or len(args) != 3 or isinstance(args[0], SparseWeight):
        refuse(func)
    bias, a, b = args
    if (
        isinstance(b, SparseWeight)
        and not isinstance(a, SparseWeight)
        and b.transposed
        and bias.shape == (b.out_features,)
        and scales == {"alpha": 1, "beta": 1}
    ):
        return product(a, b, bias, 0, None)
    return torch.add(scales["beta"] * bias, matmul(a, b), alpha=scales["alpha"])


def _is_assigned_by_torch() -> bool:
    """Whether `load_state_dict(…, assign=True)` asks, directly or through `nn.Parameter`.

    torch gives what it assigns the flag of the parameter that was there. A packed weight has no
    such choice: it takes the place frozen, as `sparsify_` and `load_into` leave it.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_ASSIGNMENT_FRAMES):
        if frame is None:
            return False
        if frame.f_code is _ASSIGNMENT:
            return True
        frame = frame.f_back
    return False


# The handler, __torch_function__, nn.Parameter.__new__ and torch's own function lie between.
_ASSIGNMENT = torch.nn.Module._load_from_state_dict.__code__
_ASSIGNMENT_FRAMES = 6


@function(Tensor.requires_grad_)
def _handle_requires_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
    if wanted is not False and not _is_assigned_by_torch():
        _refuse_gradient()
    return args[0]


@function(Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def _handle_set_requires_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args[1]:
        _refuse_gradient()


@function(Tensor.data.__set__)  # type: ignore[attr-defined]
def _handle_set_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args
    if not isinstance(target, SparseWeight) or not isinstance(source, SparseWeight):
        raise RuntimeError(
            "x.data = y with a packed weight on one side only would leave one of them with the "
            "other's shape and no values; use copy_(), or assign the module's parameter anew"
        )
    if target.shape != source.shape or target.dtype != source.dtype:
        raise RuntimeError(
            f"x.data = y: x is {list(target.shape)} {target.dtype}, y {list(source.shape)} "
            f"{source.dtype}; a packed weight takes bytes of its own shape and dtype only"
        )
    target._adopt(source.packed, source._facts, source.dense, source.scale)
