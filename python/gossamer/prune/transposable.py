# SPDX-License-Identifier: BSD-3-Clause
"""Masks that are N:M along both dimensions, so that a weight and its transpose both run fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Transposable"]


_PREFIX = "transposable"


class Transposable:
    """N:M along inputs and along outputs at once: a pattern for `Sparsifier` and `OneShot`.

    Wherever a sparsifier takes a pattern's text, `transposable:N:M` is this. For training with a
    backward pass that is sparse too. Saved and run as N:M. For 2:4 two of each
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

    @classmethod
    def read(cls, text: str) -> Transposable | None:
        """The pattern of a text that begins with "transposable"; None for other texts.

        Raises:
            ValueError: as the constructor.
        """
        word, separator, rest = text.replace(" ", ":", 1).partition(":")
        return cls(rest) if separator and word == _PREFIX else None

    def __str__(self) -> str:
        return f"{_PREFIX}:{self.n}:{self.m}"

    def __repr__(self) -> str:
        return f"Transposable('{self.n}:{self.m}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transposable) and (self.n, self.m) == (other.n, other.m)

    def __hash__(self) -> int:
        return hash((self.n, self.m))

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, 1 − N/M."""
        return 1.0 - self.n / self.m

    def at(self, sparsity: float) -> Transposable:
        """The pattern of a sparsity that is still growing: M:M down to N:M."""
        kept = max(self.n, self.m - math.floor(sparsity * self.m))
        return Transposable(f"{kept}:{self.m}")

    def select(self, scores: Tensor) -> Tensor:
        """The best mask.

        Args:
            scores: [out, in] or [batch, out, in], float32 or float64, on any device.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        mask: Tensor = torch.ops.gossamer.transposable_mask(scores.contiguous(), self.n, self.m)
        return mask
