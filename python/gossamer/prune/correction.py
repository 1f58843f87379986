# SPDX-License-Identifier: BSD-3-Clause
"""How far a weight is corrected towards the dense target, found on inputs that were held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fold", "held_out_damping"]

# From what Cholesky needs to where nothing is corrected any more; the last is infinite.
_DAMPINGS = (*(10 ** (step / 4) for step in range(-8, 13)), math.inf)


@dataclass
class Fold:
    """Sums over some of a layer's inputs: [groups, in, in], float64.

    Attributes:
        gram: XᵀX.
        cross: X₀ᵀX; None where the dense model's inputs are not seen.
        tokens: how many rows they are over.
    """

    gram: Tensor
    cross: Tensor | None
    tokens: int = 0


def held_out_damping(dense: Tensor, folds: Sequence[Fold]) -> float:
    """The damping of the correction that predicts best what it has not seen.

    The correction W·(C − G)·(G + δI)⁻¹ is a ridge regression of what the dense model gives beyond
    this layer, W·(X₀ − X), on X. δ is fitted on one half of the inputs and judged on the other, and
    the other way round. In eigenvectors of G a δ costs a quadratic form.

    Args:
        dense: W, [groups, out, in].
        folds: two halves, each with tokens.

    Returns:
        δ for both halves together, as a fraction of the mean of diag(G); infinite where no
        correction is best.
    """
    lost = torch.zeros(len(_DAMPINGS), dtype=torch.float64)
    for fitted, judge in (folds, folds[::-1]):
        lost += _lost(dense.double(), fitted, judge).cpu()
    best = _DAMPINGS[int(lost.argmin())]
    # As a sum over tokens, the best ridge does not grow with them.
    return best * max(fold.tokens for fold in folds) / sum(fold.tokens for fold in folds)


def _lost(dense: Tensor, fitted: Fold, judge: Fold) -> Tensor:
    """‖W·X₀ − W̃·X‖² − ‖W·X₀ − W·X‖² on the judge for each damping."""
    gram = fitted.gram / fitted.tokens
    values, vectors = torch.linalg.eigh(gram)
    assert fitted.cross is not None
    assert judge.cross is not None
    pull = dense @ (fitted.cross / fitted.tokens - gram) @ vectors
    wish = dense @ (judge.cross - judge.gram) @ vectors
    bend = (vectors.mT @ judge.gram @ vectors) * (pull.mT @ pull)
    along = (pull * wish).sum(dim=-2)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True)
    lost = []
    for damping in _DAMPINGS:
        step = 1 / (values.clamp(min=0) + damping * mean).clamp(min=torch.finfo(torch.float64).tiny)
        bent = (step[..., None, :] @ bend @ step[..., None]).sum()
        lost.append(bent - 2 * (along * step).sum())
    return torch.stack(lost)
