# SPDX-License-Identifier: BSD-3-Clause
"""Weights of eight bits: symmetric, a scale for each output."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "QUANTIZED_DTYPES",
    "VALUE_DTYPES",
    "checked_scale",
    "dequantized",
    "pack_quantized",
    "quantize_rows",
    "quantized_dtypes",
    "step",
]

QUANTIZED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What a quantized weight may stand for; its scales and sums are float32 all the same."""

VALUE_DTYPES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
"""What the values of a quantized weight may be, by the words that ask for them."""

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Of int8 -128 is not used, so that the range is symmetric; of float8 it is the largest number."""


def quantized_dtypes(convolution: bool) -> tuple[torch.dtype, ...]:
    """`QUANTIZED_DTYPES` of one kind of layer: convolutions are computed in float32 only."""
    return (torch.float32,) if convolution else QUANTIZED_DTYPES


def quantize_rows(values: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Symmetric int8 or float8 with a scale a row.

    scale[r] = max |w[r]| / 127 (448 of float8) and q = w / scale to nearest (ties to even), so that
    |w - scale * q| <= `step`(w, scale) up to rounding in float32. A row of zeros has scale 0.

    Args:
        values: [out, in] or a convolution's [out, channels, height, width], finite.
        dtype: int8 or float8_e4m3fn.

    Returns:
        q, the shape of `values` in `dtype`, and scale, float32 [out].

    Raises:
        ValueError: something in `values` is not finite.
    """
    values = values.detach()
    q = torch.empty_like(values, dtype=dtype)
    scale = torch.empty(values.shape[0], dtype=torch.float32, device=values.device)
    width = max(values[0].numel(), 1) if len(values) else 1
    step = max(_PART // width, 1)
    for begin in range(0, len(values), step):
        part = slice(begin, begin + step)
        scale[part] = _quantize_part(values[part].to(torch.float32), q[part])
    return q, scale


_PART = 1 << 20
"""Values that are quantized at once: copies of a whole layer would be what packing peaks at."""


def _quantize_part(rows: Tensor, q: Tensor) -> Tensor:
    """Fills q of some rows and returns their scales."""
    most = _LARGEST[q.dtype]
    largest = rows.abs().flatten(1)
    largest = largest.amax(dim=1) if largest.shape[1] else rows.new_zeros(rows.shape[0])
    if not bool(torch.isfinite(largest).all()):
        raise ValueError(
            "the weight holds NaN or infinity and cannot be quantized; look for what put it there"
        )
    # A tensor divisor: CUDA multiplies by the reciprocal of a number, a unit away at times.
    scale = largest / torch.full_like(largest, most)
    inverse = torch.where(scale > 0, scale.reciprocal(), 0.0)
    # The reciprocal of a subnormal scale is infinite: such a row is zeros.
    inverse = torch.where(torch.isfinite(inverse), inverse, 0.0)
    steps = (rows * _by_output(inverse, rows)).clamp_(-most, most)
    q.copy_(steps.round_() if q.dtype is torch.int8 else steps)
    return torch.where(inverse > 0, scale, 0.0)


def step(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The most by which rounding to `dtype` changes each value, float32 [out, in].

    Half a step of int8, which is everywhere the scale; of float8_e4m3fn, with 3 bits after the
    leading one, 2^-4 of the value, and 2^-10 of the scale among its subnormal numbers.

    Args:
        values: [out, in].
        scale: float32 [out].
        dtype: int8 or float8_e4m3fn.
    """
    rows = scale.unsqueeze(1)
    if dtype is torch.int8:
        return (rows / 2).expand(values.shape)
    return torch.maximum(values.abs().float() * 2.0**-4, rows * 2.0**-10)


def checked_scale(name: str, value: float) -> float:
    """A scale of activations that has a reciprocal in float32, as the kernels hold it.

    Raises:
        ValueError: it is not a finite number above 1.2e-38.
    """
    if not _FLOAT32.tiny <= value <= _FLOAT32.max:
        raise ValueError(
            f"{name} is {value}: a finite scale above {_FLOAT32.tiny:.2g} is accepted, "
            "max |x| / 127 of the values that it is for"
        )
    return float(value)


_FLOAT32 = torch.finfo(torch.float32)


def dequantized(q: Tensor, scale: Tensor) -> Tensor:
    """scale[r] * q[r], float32 in the shape of q."""
    return q.to(torch.float32) * _by_output(scale, q)


def _by_output(scale: Tensor, values: Tensor) -> Tensor:
    """[out] as [out, 1, …]."""
    return scale.reshape(-1, *[1] * (values.dim() - 1))


def pack_quantized(
    values: Tensor,
    pattern: str | None,
    *,
    mask: Tensor | None = None,
    name: str = "weight",
    dtype: torch.dtype = torch.int8,
    layout: str = "format",
) -> tuple[Tensor, Tensor]:
    """A floating weight as packed 8-bit values, and their scales, on the weight's device.

    Args:
        values: [out, in] or [out, channels, height, width]; zeros mark what is pruned. 2:4 ones
            on a GPU are quantized and packed there, in one kernel; others are quantized there and
            packed on the CPU.
        pattern: None takes the tightest that the zeros of `values` satisfy.
        mask: bool, what is kept; None keeps the non-zeros, those that round to zero included.
        name: what error messages call the weight.
        dtype: int8 or float8_e4m3fn.
        layout: "format", or the name of a layout that holds such a weight.

    Returns:
        packed, uint8 [bytes], and scale, float32 [out].

    Raises:
        ValueError: the weight breaks the pattern or holds something that is not finite.
    """
    ops = torch.ops.gossamer
    if _is_packed_on_gpu(values, pattern, layout):
        mask = None if mask is None else mask.to(values.device)
        packed, scale, verdict = ops.quantize_pack_24(values.detach(), mask, dtype, layout)
        ops.check_24(verdict, values.shape[1], name)
        return packed, scale
    mask = (values != 0 if mask is None else mask).cpu()
    if not pattern and values.dim() == 2:
        pattern = ops.infer_pattern(mask.contiguous().view(torch.int8))
    q, scale = quantize_rows(values, dtype)
    packed = ops.pack(q.cpu(), mask, pattern or "", "format", False, name)
    if layout != "format":
        packed = ops.convert(packed, layout)
    return packed.to(values.device), scale


def _is_packed_on_gpu(values: Tensor, pattern: str | None, layout: str) -> bool:
    """Whether `quantize_pack_24` takes such a weight."""
    return (
        values.is_cuda
        and values.dim() == 2
        and values.dtype in QUANTIZED_DTYPES
        and pattern in ("2:4", "nm:2:4")
        and layout in ("format", "nm", "nm24_tiles")
        and hasattr(torch.ops.gossamer, "quantize_pack_24")
    )
