# SPDX-License-Identifier: BSD-3-Clause
"""What torch.compile and torch.export see instead of the operators: a fake for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from gossamer import _library  # noqa: F401  (loads the operators)
from gossamer._layout_argument import result_dtype

__all__ = ["conv2d_fake", "linear_fake", "paddings"]

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


def _shape_of(name: str) -> Callable[[_Fake], _Fake]:
    def register(fake: _Fake) -> _Fake:
        torch.library.register_fake(f"gossamer::{name}", fake)
        return fake

    return register


def linear_fake(
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
    """[..., out], in the dtype that the argument `layout` asks for."""
    return x.new_empty((*x.shape[:-1], out), dtype=result_dtype(layout, x))


_shape_of("linear")(linear_fake)
_shape_of("linear_autograd")(linear_fake)


@_shape_of("linear_plain")
def _linear_plain_fake(
    x: Tensor, packed: Tensor, layout: int, out: int, bias: Tensor | None
) -> Tensor:
    return linear_fake(x, packed, layout, out)


@_shape_of("linear_dx")
def _linear_dx_fake(
    grad: Tensor, packed: Tensor, layout: int, inputs: int, dense: Tensor | None = None
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], inputs))


def _output_side(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def paddings(padding: Sequence[int]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right, of [height, width] or of the four."""
    if len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    return padding[0], padding[0], padding[1], padding[1]


def conv2d_fake(
    x: Tensor,
    packed: Tensor,
    layout: int,
    out: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: Tensor | None = None,
    activation: int = 0,
    residual: Tensor | None = None,
    dense: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """[[batch,] out, height, width], in x's memory format."""
    top, bottom, left, right = paddings(padding)
    height = _output_side(x.shape[-2], kernel[0], stride[0], top + bottom, dilation[0])
    width = _output_side(x.shape[-1], kernel[1], stride[1], left + right, dilation[1])
    shape = (*x.shape[:-3], out, height, width)
    is_last = (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    memory = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory)


_shape_of("conv2d")(conv2d_fake)
_shape_of("conv2d_autograd")(conv2d_fake)


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


@_shape_of("pack_")
def _pack_in_place_fake(packed: Tensor, values: Tensor, mask: Tensor | None = None) -> None:
    return None


@_shape_of("fill_second_")
def _fill_second_fake(packed: Tensor, layout: str) -> None:
    return None


@_shape_of("unpack_")
def _unpack_in_place_fake(packed: Tensor, values: Tensor, mask: Tensor | None = None) -> None:
    return None


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


@_shape_of("gram_")
def _gram_fake(gram: Tensor, x: Tensor, y: Tensor) -> None:
    return None


@_shape_of("obs_sweep")
def _obs_sweep_fake(
    weight: Tensor, factor: Tensor, mask: Tensor | None, pattern: str, block: int, segment: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(weight.shape, dtype=torch.bool)


@_shape_of("lamp_scores")
def _lamp_scores_fake(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float64)


@_shape_of("transposable_mask")
def _transposable_mask_fake(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _reads_data(name: str) -> None:
    """Answers in Python values that depend on the data: they have no fake, and say so."""

    def fake(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"torch.ops.gossamer.{name} returns a Python value that depends on the tensor's data; "
            "call it outside of torch.compile and torch.export"
        )

    torch.library.register_fake(f"gossamer::{name}", fake)


for _name in (
    "info",
    "format_arrays",
    "plan",
    "plan_conv2d",
    "find_violation",
    "infer_pattern",
    "count_nonzeros",
    "refit",
    "admm",
    "swap_refine",
):
    _reads_data(_name)
