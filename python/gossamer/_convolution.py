# SPDX-License-Identifier: BSD-3-Clause
"""The numbers of a convolution beside its weight: stride, padding, dilation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

__all__ = ["Convolution", "paddings", "pair"]


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """One number for both sides, or the two; ValueError where it is neither."""
    if type(value) is tuple and len(value) == 2:  # what modules hold; the questions below are slow
        return value
    if not isinstance(value, Sequence):
        return (value, value)
    if len(value) == 1:
        return (value[0], value[0])
    if len(value) != 2:
        raise ValueError(f"conv2d: {name} is {list(value)}; one number or two are accepted")
    return (value[0], value[1])


def paddings(
    padding: int | Sequence[int] | str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, ...]:
    """[height, width] or [top, bottom, left, right] of what `F.conv2d` accepts as padding.

    Raises:
        ValueError: it is another word, or "same" with a stride.
    """
    if padding == "valid":
        return (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(
                f"conv2d: padding 'same' is not defined for a stride, and stride is {stride}"
            )
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if all(total % 2 == 0 for total in totals):
            return (totals[0] // 2, totals[1] // 2)
        return tuple(side for total in totals for side in (total // 2, total - total // 2))
    if isinstance(padding, str):
        raise ValueError(f"conv2d: padding is {padding!r}; 'same', 'valid' and numbers are known")
    if not isinstance(padding, int) and len(padding) == 4:
        return tuple(padding)
    return pair("padding", padding)


@dataclass(frozen=True)
class Convolution:
    """What a convolution is beside its weight.

    Attributes:
        stride: height, width.
        padding: height, width; or top, bottom, left, right.
        dilation: height, width.
    """

    stride: tuple[int, int]
    padding: tuple[int, ...]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, module: nn.Conv2d) -> Convolution:
        """The numbers of a module."""
        held = (module.stride, module.padding, module.dilation, module.kernel_size)
        # Dynamo traces through caches, and warns of it.
        return _numbers(*held) if torch.compiler.is_compiling() else _known_numbers(*held)


def _numbers(
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    kernel: tuple[int, ...],
) -> Convolution:
    strides, dilations = (stride[0], stride[1]), (dilation[0], dilation[1])
    sides = paddings(padding, (kernel[0], kernel[1]), strides, dilations)
    return Convolution(strides, sides, dilations)


_known_numbers = lru_cache(maxsize=1024)(_numbers)
