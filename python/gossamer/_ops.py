# SPDX-License-Identifier: BSD-3-Clause
"""Loads the operators of `torch.ops.gossamer` and gives them shapes and gradients.

The operators themselves are C++ (`_C.so`, on PyTorch's stable ABI). Importing this module is all
that is needed to use them; loading `_C.so` with `torch.ops.load_library` alone is enough to run
programs that were exported with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from gossamer import _ops_cuda

_OLDEST_TORCH = (2, 10)

_Fake = TypeVar("_Fake", bound=Callable[..., Any])

RELU = 1
"""The `activation` argument of `linear` that applies ReLU; 0 applies nothing."""


def _library_path() -> Path:
    override = os.environ.get("GOSSAMER_LIBRARY")
    return Path(override) if override else Path(__file__).with_name("_C.so")


def _check_torch() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"gossamer needs torch >= {oldest} (its operators use the stable ABI of that release); "
            f"this is torch {torch.__version__}. Upgrade it: pip install -U torch"
        )


def _load(path: Path) -> None:
    if not path.is_file():
        raise ImportError(
            f"gossamer's operators are not there: {path} does not exist. Install the package "
            "(pip install gossamer, or `make install` in a checkout), or set GOSSAMER_LIBRARY to a "
            "built _C.so"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"gossamer's operators could not be loaded from {path}: {error}. They need "
            f"libgossamer.so beside them and torch >= 2.10 (this is {torch.__version__}); rebuild "
            "with `make install`"
        ) from error


_check_torch()
_load(_library_path())
_cuda_library = _library_path().with_name("_C_cuda.so")
if torch.cuda.is_available() and _cuda_library.is_file():
    _load(_cuda_library)
    _ops_cuda.register()

_ops = torch.ops.gossamer


def info(packed: Tensor) -> dict[str, Any]:
    """What a packed weight says of itself.

    Args:
        packed: uint8 [bytes], as `torch.ops.gossamer.pack` returns it.

    Returns:
        `layout`, `layout_code`, `format`, `pattern`, `dtype`, `shape` ([out, in] or
        [batch, out, in]), `batch`, `out`, `in`, `kept`, `bytes`, `transposed`, `plan` (a kernel's
        name or None for each bucket of token counts), and `arrays` (`name`, `dtype`, `shape`; empty
        where the layout is not a format).

    Raises:
        ValueError: the bytes are not a packed weight.
    """
    return json.loads(_ops.info(packed))


# --- Shapes: what torch.compile and torch.export see instead of the operators ---------------------


def _shape_of(name: str) -> Callable[[_Fake], _Fake]:
    def register(fake: _Fake) -> _Fake:
        torch.library.register_fake(f"gossamer::{name}", fake)
        return fake

    return register


def _linear_fake(
    x: Tensor,
    packed: Tensor,
    layout: int,
    out: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: int = 0,
    residual: Tensor | None = None,
    dense: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out))


_shape_of("linear")(_linear_fake)
_shape_of("linear_autograd")(_linear_fake)


@_shape_of("linear_dx")
def _linear_dx_fake(
    grad: Tensor, packed: Tensor, layout: int, inputs: int, dense: Tensor | None = None
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], inputs))


def _new_bytes(like: Tensor) -> Tensor:
    """A packed weight whose size depends on the data."""
    size = torch.library.get_ctx().new_dynamic_size(min=256)
    return like.new_empty((size,), dtype=torch.uint8)


@_shape_of("pack")
def _pack_fake(
    values: Tensor, mask: Tensor | None, pattern: str, layout: str, transposed: bool, name: str
) -> Tensor:
    return _new_bytes(values)


@_shape_of("convert")
def _convert_fake(packed: Tensor, layout: str) -> Tensor:
    return _new_bytes(packed)


@_shape_of("slice_rows")
def _slice_rows_fake(packed: Tensor, begin: int, end: int) -> Tensor:
    return _new_bytes(packed)


@_shape_of("concat_rows")
def _concat_rows_fake(parts: Sequence[Tensor]) -> Tensor:
    return _new_bytes(parts[0])


@_shape_of("from_format_arrays")
def _from_format_arrays_fake(info: str, arrays: Sequence[Tensor]) -> Tensor:
    return _new_bytes(arrays[0])


@_shape_of("with_plan")
def _with_plan_fake(packed: Tensor, kernels: str) -> Tensor:
    return torch.empty_like(packed)


@_shape_of("unpack")
def _unpack_fake(packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


@_shape_of("unpack_mask")
def _unpack_mask_fake(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bool)


@_shape_of("validate")
def _validate_fake(packed: Tensor) -> None:
    return None


@_shape_of("select_masks")
def _select_masks_fake(scores: Sequence[Tensor], pattern: str, scope: str) -> list[Tensor]:
    return [score.new_empty(score.shape, dtype=torch.bool) for score in scores]


@_shape_of("magnitude_mask")
def _magnitude_mask_fake(values: Tensor, pattern: str, scope: str) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)


def _reads_data(name: str) -> None:
    """Answers in Python values that depend on the data: they have no fake, and say so."""

    def fake(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"torch.ops.gossamer.{name} returns a Python value that depends on the tensor's data; "
            "call it outside of torch.compile and torch.export"
        )

    torch.library.register_fake(f"gossamer::{name}", fake)


for _name in ("info", "format_arrays", "plan", "find_violation", "infer_pattern", "count_nonzeros"):
    _reads_data(_name)


# --- Gradients: of the input, the bias and the residual; a packed weight has none -----------------


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, layout, _, _, bias, activation, _, dense = inputs
    ctx.save_for_backward(packed, output if activation == RELU else None, dense)
    ctx.layout = layout
    ctx.inputs = x.shape[-1]
    ctx.bias_dims = None if bias is None else bias.dim()


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, output, dense = ctx.saved_tensors
    # Arguments that a call left out have no entry.
    needs_grad = (*ctx.needs_input_grad, *[False] * 9)
    if needs_grad[8]:
        raise RuntimeError(
            "the dense copy of a packed weight has no gradient: train the dense weight under a "
            "mask (a gossamer.Sparsifier prepared on the model), or unpack the model with "
            "gossamer.desparsify_(model)"
        )
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    grad_x = grad_bias = None
    if needs_grad[0]:
        grad_x = _ops.linear_dx(grad, packed, ctx.layout, ctx.inputs, dense)
    if needs_grad[5]:
        # A stack's bias is [batch, out] and its result [batch, tokens, out].
        grad_bias = grad.sum(dim=1) if ctx.bias_dims == 2 else grad.flatten(0, -2).sum(dim=0)
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
    "gossamer::linear_autograd", _linear_backward, setup_context=_linear_setup
)
torch.library.register_autograd(
    "gossamer::linear_dx", _linear_dx_backward, setup_context=_linear_dx_setup
)
