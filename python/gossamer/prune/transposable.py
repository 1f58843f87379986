# SPDX-License-Identifier: BSD-3-Clause
"""Masks that are N:M along both dimensions, so that a weight and its transpose both run fast."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Transposable"]


class Transposable:
    """2:4 along inputs and along outputs at once: a pattern for `Sparsifier` and `OneShot`.

    In every 4x4 tile two of each row and column are kept, those with the highest sum of scores,
    found exactly among the 90 masks that there are (Hu et al. 2024, arXiv:2404.01847). For training
    with a backward pass that is sparse too. Saved and run as 2:4.
    """

    grouped = True
    """Convolutions are seen tap by tap."""

    def __str__(self) -> str:
        return "transposable 2:4"

    def select(self, scores: Tensor) -> Tensor:
        """The best mask.

        Args:
            scores: [out, in] or [batch, out, in], float32 or float64.

        Raises:
            ValueError: a score is NaN.
        """
        mask: Tensor = torch.ops.gossamer.transposable_mask(scores.contiguous())
        return mask
