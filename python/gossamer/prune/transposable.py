# SPDX-License-Identifier: BSD-3-Clause
"""Masks that are N:M along both dimensions, so that a weight and its transpose both run fast."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Transposable"]


class Transposable:
    """N:M along inputs and along outputs at once: a pattern for `Sparsifier` and `OneShot`.

    For training with a backward pass that is sparse too. Saved and run as N:M. For 2:4 two of each
    row and column of every 4x4 tile are kept, those with the highest sum of scores, found exactly
    among the 90 masks that there are (Hu et al. 2024, arXiv:2404.01847). Larger tiles are found by
    optimal transport with entropy ("TSENOR", Meng et al. 2025, arXiv:2505.23949), rounded and
    improved by exchanges.

    Args:
        pattern: "N:M", M one of 2, 4, 8, 16, 32.

    Raises:
        ValueError: another pattern.
    """

    grouped = True
    """Convolutions are seen tap by tap."""
    any_device = True
    """Scores need not be on the CPU: 2:4 is solved on a GPU too, with the same masks."""

    def __init__(self, pattern: str = "2:4") -> None:
        kept, _, side = pattern.partition(":")
        accepted = kept.isdecimal() and side in ("2", "4", "8", "16", "32")
        if not accepted or not 1 <= int(kept) <= int(side):
            raise ValueError(
                f"Transposable({pattern!r}): 'N:M' with 1 <= N <= M and M one of 2, 4, 8, 16, 32 "
                "is accepted, e.g. '4:8'"
            )
        self.n, self.m = int(kept), int(side)

    def __str__(self) -> str:
        return f"transposable {self.n}:{self.m}"

    def select(self, scores: Tensor) -> Tensor:
        """The best mask.

        Args:
            scores: [out, in] or [batch, out, in], float32 or float64, on any device.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        mask: Tensor = torch.ops.gossamer.transposable_mask(scores.contiguous(), self.n, self.m)
        return mask
