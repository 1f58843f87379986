# SPDX-License-Identifier: BSD-3-Clause
"""Operators on CUDA tensors that are answered by way of the CPU.

Multiplying, packing, unpacking and converting run on the GPU (`_C_cuda.so`); here is what
torch.compile and torch.export see instead of the operators that exist there only. What is left is
asked once in the life of a weight, to check, cut or save it: the bytes travel to the CPU, and
tensors that come back to the GPU. To describe or plan a weight its header travels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

load_failure: str | None = None
"""Why `_C_cuda.so`, which is there, could not be loaded."""

_HEADER_BYTES = 256
_HAS_SECOND = 14
"""A byte of the header (include/gossamer/packed_weight.h), 0 where no second one lies behind."""

_FROM_CPU = (
    "validate",
    "format_arrays",
    "from_format_arrays",
    "slice_rows",
    "concat_rows",
    "find_violation",
    "infer_pattern",
    "count_nonzeros",
    "select_masks",
    "magnitude_mask",
)


def _moved(value: Any, device: torch.device | str) -> Any:
    """Tensors, alone or in sequences, on a device; the rest as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value


def _device_of(arguments: Sequence[Any]) -> torch.device:
    """The device of the first tensor among arguments."""
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return value[0].device
    raise TypeError("no tensor among the arguments")


def _by_way_of_the_cpu(name: str) -> None:
    op = getattr(torch.ops.gossamer, name).default

    def call(*args: Any) -> Any:
        return _moved(op(*_moved(args, "cpu")), _device_of(args))

    torch.library.impl(f"gossamer::{name}", "cuda", call)


def _described(packed: Tensor) -> Tensor:
    """On the CPU what a packed weight says of itself; its arrays hold whatever the memory held."""
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() < _HEADER_BYTES:
        return packed.cpu()  # the operator says what is wrong with it
    header = packed[:_HEADER_BYTES].cpu()
    if header[_HAS_SECOND]:
        return packed.cpu()
    # Memory that nobody touches costs nothing.
    host = torch.empty(packed.numel(), dtype=torch.uint8)
    host[:_HEADER_BYTES] = header
    return host


def _info(packed: Tensor) -> str:
    return str(torch.ops.gossamer.info(_described(packed)))


def _with_plan(packed: Tensor, kernels: str) -> Tensor:
    planned = torch.ops.gossamer.with_plan(_described(packed), kernels)
    if planned[_HAS_SECOND]:  # both headers hold the plan
        return planned.to(packed.device)
    result = packed.clone()
    result[:_HEADER_BYTES].copy_(planned[:_HEADER_BYTES])
    return result


def register() -> None:
    """Gives the operators their CUDA implementations; once, after `_C_cuda.so` is loaded."""
    for name in _FROM_CPU:
        _by_way_of_the_cpu(name)
    torch.library.impl("gossamer::info", "cuda", _info)
    torch.library.impl("gossamer::with_plan", "cuda", _with_plan)
    for fake in (
        linear_quantized,
        quantize_rows,
        pack_24,
        quantize_pack_24,
        verify_24,
        prune_pack_24,
        unpack_tiles,
        publish_,
    ):
        torch.library.register_fake(f"gossamer::{fake.__name__}", fake)


# --- Shapes of the operators that only a GPU has --------------------------------------------------


def linear_quantized(
    x: Tensor,
    x_scale: Tensor | None,
    packed: Tensor,
    layout: int,
    out: int,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    activation: int,
    residual: Tensor | None,
    dtype: torch.dtype,
    accurate: bool,
) -> Tensor:
    """[..., out], contiguous."""
    return x.new_empty((*x.shape[:-1], out), dtype=dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The shape of x, rows beginning at multiples of 16 bytes, and a scale a row."""
    *rows, columns = x.shape
    padded = (columns + 15) // 16 * 16
    q = x.new_empty((*rows, padded), dtype=dtype)[..., :columns]
    return q, x.new_empty(rows, dtype=torch.float32)


def _new_packed(values: Tensor) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size(min=256)
    return values.new_empty((size,), dtype=torch.uint8)


def verify_24(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Int64 [batch, 2]."""
    batch = values.shape[0] if values.dim() == 3 else 1
    return values.new_empty((batch, 2), dtype=torch.int64)


def pack_24(
    values: Tensor,
    mask: Tensor | None = None,
    layout: str = "nm24_tiles",
    transposed: bool = False,
    prune: bool = False,
) -> tuple[Tensor, Tensor]:
    """Packed bytes and the verdict."""
    return _new_packed(values), verify_24(values)


def quantize_pack_24(
    values: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    layout: str = "nm24_tiles",
    prune: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed bytes, scales and the verdict."""
    scale = values.new_empty((values.shape[0],), dtype=torch.float32)
    return _new_packed(values), scale, verify_24(values)


def unpack_tiles(packed: Tensor, layout: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Dense values of the shape asked for."""
    return packed.new_empty(shape, dtype=dtype)


def publish_(packed: Tensor) -> None:
    """Nothing but the order of kernels."""


def prune_pack_24(values: Tensor, transposed: bool = False) -> Tensor:
    """Packed bytes."""
    return _new_packed(values)
