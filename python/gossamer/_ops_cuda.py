# SPDX-License-Identifier: BSD-3-Clause
"""Operators on CUDA tensors that are answered by way of the CPU.

Multiplying, packing, unpacking and converting run on the GPU (`_C_cuda.so`). What is left is asked
once in the life of a weight, to describe, check, cut or save it: the bytes travel to the CPU, and
tensors that come back to the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FROM_CPU = (
    "info",
    "validate",
    "format_arrays",
    "from_format_arrays",
    "slice_rows",
    "concat_rows",
    "with_plan",
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


def register() -> None:
    """Gives the operators their CUDA implementations; once, after `_C_cuda.so` is loaded."""
    for name in _FROM_CPU:
        _by_way_of_the_cpu(name)
