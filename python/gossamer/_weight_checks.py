# SPDX-License-Identifier: BSD-3-Clause
"""Refuses scales, dtypes and dense copies that packed 8-bit values cannot have."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer._quantization import VALUE_DTYPES, checked_scale, quantized_dtypes
from gossamer._weight_facts import Facts

__all__ = ["checked_quantized"]


def check_dense(facts: Facts, dense: Tensor | None) -> None:
    """Raises ValueError where a dense copy is not [[batch,] out, in] of the weight's dtype."""
    if dense is None:
        return
    if tuple(dense.shape) != facts.logical_shape or dense.dtype != facts.dtype:
        raise ValueError(
            f"dense is {list(dense.shape)} {dense.dtype}, the packed weight "
            f"{list(facts.logical_shape)} {facts.dtype} ([[batch,] out, in]); both must be the same"
        )


def checked_quantized(
    facts: Facts,
    scale: Tensor,
    dtype: torch.dtype,
    dense: Tensor | None,
    input_scale: float,
    device: torch.device,
) -> float:
    """The input scale as a float, after checking everything that makes a quantized weight.

    Args:
        facts: of the packed 8-bit values.
        scale: float32 [out].
        dtype: of the parameter that the weight stands for.
        dense: the dense copy in the weight's shape and `dtype`, or None.
        input_scale: what inputs are rounded at; 0 for none.
        device: where the packed values are.

    Raises:
        ValueError: one of them is something else; says which, and what is accepted.
    """
    accepted = (torch.int8,) if facts.kernel else tuple(VALUE_DTYPES.values())
    if facts.dtype not in accepted or facts.batch != 1 or facts.transposed:
        raise ValueError(
            f"packed is a weight {list(facts.shape)} of {facts.dtype}: a quantized weight is "
            "int8 or float8_e4m3fn [out, in], or a convolution's in int8; pack such values, "
            "not transposed"
        )
    if tuple(scale.shape) != (facts.out,) or scale.dtype != torch.float32:
        raise ValueError(
            f"scale is {list(scale.shape)} {scale.dtype}: float32 [{facts.out}], one for each "
            "output, is accepted"
        )
    accepted = quantized_dtypes(facts.kernel is not None)
    if dtype not in accepted:
        raise ValueError(
            f"a quantized {'convolution' if facts.kernel else 'weight'} cannot stand for "
            f"{dtype}; {', '.join(map(str, accepted))} are accepted"
        )
    if dense is not None and (tuple(dense.shape) != facts.shape or dense.dtype != dtype):
        raise ValueError(
            f"dense is {list(dense.shape)} {dense.dtype}: {list(facts.shape)} {dtype} is accepted"
        )
    input_scale = checked_scale("input_scale", input_scale) if input_scale else 0.0
    if input_scale and (facts.dtype is not torch.int8 or device.type != "cpu"):
        raise ValueError(
            f"input_scale is {input_scale} for {facts.dtype} values on {device}: int8 "
            "weights on the CPU take one; leave it at 0"
        )
    return input_scale
