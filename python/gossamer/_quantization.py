# SPDX-License-Identifier: BSD-3-Clause
"""Weights of eight bits: symmetric, a scale for each output."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["QUANTIZED_DTYPES", "dequantized", "pack_quantized", "quantize_rows", "quantized_dtypes"]

QUANTIZED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What a quantized weight may stand for; its scales and sums are float32 all the same."""

_LARGEST = 127.0
"""Of int8; -128 is not used, so that the range is symmetric."""


def quantized_dtypes(convolution: bool) -> tuple[torch.dtype, ...]:
    """`QUANTIZED_DTYPES` of one kind of layer: convolutions are computed in float32 only."""
    return (torch.float32,) if convolution else QUANTIZED_DTYPES


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with a scale a row.

    scale[r] = max |w[r]| / 127 and q = w / scale to nearest (ties to even), so that
    |w - scale * q| <= scale / 2 up to rounding in float32. A row of zeros has scale 0.

    Args:
        values: [out, in] or a convolution's [out, channels, height, width], finite.

    Returns:
        q, int8, the shape of `values`, and scale, float32 [out].

    Raises:
        ValueError: something in `values` is not finite.
    """
    rows = values.detach().to(torch.float32)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(
            "the weight holds NaN or infinity and cannot be quantized; look for what put it there"
        )
    largest = rows.abs().flatten(1)
    largest = largest.amax(dim=1) if largest.shape[1] else rows.new_zeros(rows.shape[0])
    scale = largest / _LARGEST
    inverse = torch.where(scale > 0, scale.reciprocal(), 0.0)
    # The reciprocal of a subnormal scale is infinite: such a row is zeros.
    inverse = torch.where(torch.isfinite(inverse), inverse, 0.0)
    q = torch.round(rows * _by_output(inverse, rows)).clamp_(-_LARGEST, _LARGEST)
    return q.to(torch.int8), torch.where(inverse > 0, scale, 0.0)


def dequantized(q: Tensor, scale: Tensor) -> Tensor:
    """scale[r] * q[r], float32 in the shape of q."""
    return q.to(torch.float32) * _by_output(scale, q)


def _by_output(scale: Tensor, values: Tensor) -> Tensor:
    """[out] as [out, 1, …]."""
    return scale.reshape(-1, *[1] * (values.dim() - 1))


def pack_quantized(
    values: Tensor, pattern: str | None, *, mask: Tensor | None = None, name: str = "weight"
) -> tuple[Tensor, Tensor]:
    """A floating weight as packed int8 values in their format, and their scales.

    Args:
        values: [out, in] or [out, channels, height, width]; zeros mark what is pruned.
        pattern: None takes the tightest that the zeros of `values` satisfy.
        mask: bool, what is kept; None keeps the non-zeros, those that round to zero included.
        name: what error messages call the weight.

    Returns:
        packed, uint8 [bytes], and scale, float32 [out].

    Raises:
        ValueError: the weight breaks the pattern or holds something that is not finite.
    """
    mask = values != 0 if mask is None else mask
    if not pattern and values.dim() == 2:
        pattern = torch.ops.gossamer.infer_pattern(torch.where(mask, 1.0, 0.0))
    q, scale = quantize_rows(values)
    packed = torch.ops.gossamer.pack(q, mask, pattern or "", "format", False, name)
    return packed, scale
