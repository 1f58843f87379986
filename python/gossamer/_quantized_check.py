# SPDX-License-Identifier: BSD-3-Clause
"""Whether products of a quantized weight are what its dense values and rounding explain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer._quantization import step
from gossamer.weight import SparseWeight

__all__ = ["discrepancy"]

_TOKENS = (1, 17, 300)
"""Few and many: both families of kernels, tiles that are full and that are not."""

_COLUMNS = 64
_TERMS = 16


@torch.no_grad()
def discrepancy(weight: SparseWeight, dense: Tensor) -> str | None:
    """Compares a few products with those of the dense values.

    Tokens are ±1 at 16 of 64 inputs and zero elsewhere. Both types of eight bits hold that exactly,
    so that only the rounding of the weight (`step`), of sums and of the result is left: 14
    significant bits of float8 sums, of which each of the 16 products may lose a unit at each of the
    at most 16 instructions that see one, and half a unit of the result's dtype.

    Args:
        weight: quantized, on the device of `dense`.
        dense: [out, in], what was quantized.

    Returns:
        A sentence about the worst product, or None where all are right.
    """
    assert weight.scale is not None
    generator = torch.Generator().manual_seed(0)
    inputs = dense.shape[1]
    columns = torch.randperm(inputs, generator=generator)[:_COLUMNS]
    columns[-1] = inputs - 1
    columns = columns.unique()
    part = dense[:, columns.to(dense.device)]
    bounds = step(part, weight.scale, weight._facts.dtype).double()
    part = part.double()
    for tokens in _TOKENS:
        signs = _signs(tokens, len(columns), generator)
        x = torch.zeros(tokens, inputs, dtype=dense.dtype)
        x[:, columns] = signs.to(dense.dtype)
        y = F.linear(x.to(dense.device), weight).double()
        signs = signs.to(dense.device)
        exact = signs @ part.T
        magnitude = signs.abs() @ (part.abs() + bounds).T
        allowed = signs.abs() @ bounds.T + 2.0**-18 * magnitude
        if weight._facts.dtype is torch.float8_e4m3fn:
            allowed += _TERMS * _TERMS * 2.0**-13 * magnitude
        finfo = torch.finfo(dense.dtype)
        allowed += finfo.eps / 2 * (exact.abs() + allowed) + finfo.tiny
        excess = (y - exact).abs() - allowed
        if not bool((excess <= 0).all()):
            worst = int(excess.nan_to_num(nan=torch.inf).argmax())
            off = float((y - exact).abs().flatten()[worst])
            return (
                f"its quantized product of {tokens} tokens is off by {off:.3g} where rounding "
                f"explains {float(allowed.flatten()[worst]):.3g}"
            )
    return None


def _signs(tokens: int, columns: int, generator: torch.Generator) -> Tensor:
    """[tokens, columns] of 0 and ±1, at most 16 of them not 0, float64."""
    order = torch.rand(tokens, columns, generator=generator).argsort(1).argsort(1)
    signs = torch.randint(0, 2, (tokens, columns), generator=generator).double() * 2 - 1
    return torch.where(order < _TERMS, signs, 0.0)
