# SPDX-License-Identifier: BSD-3-Clause
"""How a weight of any rank is the matrix that a pattern speaks of."""

from __future__ import annotations

from torch import Tensor

__all__ = ["from_matrix", "to_matrix"]


def to_matrix(weight: Tensor, *, groups_along_input: bool) -> Tensor:
    """The weight as a matrix [out, in].

    A convolution weight [OC, IC, …taps] is [OC, taps·IC], channels last; for patterns that group
    inputs (`N:M`,
    `vnm`) each tap is a row of its own, [OC·taps, IC], so that no group crosses from one tap into
    the next.

    Args:
        weight: [out, in] or [OC, IC, …taps].
        groups_along_input: whether the pattern groups neighbouring inputs.

    Returns:
        A contiguous matrix; a copy where the weight is not one already.
    """
    if weight.dim() == 2:
        return weight.contiguous()
    channels_last = weight.movedim(1, -1)
    if groups_along_input:
        return channels_last.reshape(-1, weight.shape[1])
    return channels_last.reshape(weight.shape[0], -1)


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_matrix`: the matrix in the shape of `like`."""
    if like.dim() == 2:
        return matrix
    out, inputs, *taps = like.shape
    return matrix.reshape(out, *taps, inputs).movedim(-1, 1)
