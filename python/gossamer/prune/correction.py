# SPDX-License-Identifier: BSD-3-Clause
"""How far a weight is corrected towards the dense target, found on inputs that were held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FOLDS", "Fold", "held_out_damping", "joined", "mean_diagonal"]

FOLDS = 4
"""Into how many parts batches are put. More would fit to more of them, and take more memory."""

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


def joined(folds: Sequence[Fold]) -> Fold:
    """The sums over several folds."""
    cross = [fold.cross for fold in folds if fold.cross is not None]
    gram = [fold.gram for fold in folds]
    return Fold(
        torch.stack(gram).sum(dim=0) if len(gram) > 1 else gram[0],
        torch.stack(cross).sum(dim=0) if len(cross) > 1 else cross[0] if cross else None,
        sum(fold.tokens for fold in folds),
    )


def mean_diagonal(gram: Tensor) -> Tensor:
    """What dampings are fractions of: the mean of diag(G) of each group, [groups], above 0.

    A group whose inputs are all zero, which an earlier layer may have left dead, takes the mean of
    all groups: its H is then δI, and its weights stay as they are.
    """
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    mean = torch.where(mean > 0, mean, mean.mean())
    return torch.where(mean > 0, mean, 1.0)


def held_out_damping(dense: Tensor, folds: Sequence[Fold]) -> float:
    """The damping of the correction that predicts best what it has not seen.

    The correction W·(C − G)·(G + δI)⁻¹ is a ridge regression of what the dense model gives beyond
    this layer, W·(X₀ − X), on X. It is fitted to all folds but one and judged on that one, for each
    in turn. In eigenvectors of G a δ costs a quadratic form.

    Args:
        dense: W, [groups, out, in].
        folds: two or more, each with tokens.

    Returns:
        δ for all folds together, as a fraction of the mean of diag(G); infinite where no
        correction is best.
    """
    lost = torch.zeros(len(_DAMPINGS), dtype=torch.float64)
    for index, judge in enumerate(folds):
        others = joined([*folds[:index], *folds[index + 1 :]])
        lost += _lost(dense.double(), others, judge).cpu()
    # As a sum over tokens, the best ridge does not grow with them.
    return _DAMPINGS[int(lost.argmin())] * (1 - 1 / len(folds))


def _lost(dense: Tensor, fitted: Fold, judge: Fold) -> Tensor:
    """‖W·X₀ − W̃·X‖² − ‖W·X₀ − W·X‖² on the judge for each damping."""
    gram = fitted.gram / fitted.tokens
    values, vectors = torch.linalg.eigh(gram)
    assert fitted.cross is not None
    assert judge.cross is not None
    mean = mean_diagonal(gram)[:, None]
    pull = dense @ (fitted.cross / fitted.tokens - gram) @ vectors
    wish = dense @ (judge.cross - judge.gram) @ vectors
    bend = (vectors.mT @ judge.gram @ vectors) * (pull.mT @ pull)
    along = (pull * wish).sum(dim=-2)
    lost = []
    for damping in _DAMPINGS:
        step = 1 / (values.clamp(min=0) + damping * mean).clamp(min=torch.finfo(torch.float64).tiny)
        bent = (step[..., None, :] @ bend @ step[..., None]).sum()
        lost.append(bent - 2 * (along * step).sum())
    return torch.stack(lost)
