# SPDX-License-Identifier: BSD-3-Clause
"""A live mask whose scores are parameters that training moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.prune.mask import Mask

__all__ = ["ScoredMask"]


class _StraightThrough(torch.autograd.Function):
    """where(mask, weight, 0); a score gets the gradient that its weight would add to the loss."""

    @staticmethod
    def forward(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, mask = inputs
        ctx.save_for_backward(weight, mask)
        ctx.dtype = scores.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        weight, mask = ctx.saved_tensors
        of_weight = torch.where(mask, grad, 0) if ctx.needs_input_grad[0] else None
        of_scores = (grad * weight).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return of_weight, of_scores, None


class ScoredMask(Mask):
    """A `Mask` with one score for each weight, a parameter.

    Scores get the gradient ∂L/∂W ⊙ W of every weight, kept or dropped, as if the mask were the
    score (straight-through): the sum of a score's updates says whether the loss pushes the weight
    away from zero (movement) or wants it in the network (supermask).

    Attributes:
        scores: float32, the weight's shape.

    Args:
        mask: bool, the weight's shape.
        scores: the first scores; None starts at 0.

    Raises:
        ValueError: the mask is not bool.
    """

    def __init__(self, mask: Tensor, scores: Tensor | None = None) -> None:
        super().__init__(mask)
        first = torch.zeros(mask.shape, device=mask.device) if scores is None else scores
        self.scores = nn.Parameter(first.detach().float().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where nothing is kept; same shape and dtype."""
        masked: Tensor = _StraightThrough.apply(weight, self.scores, self.mask)
        return masked
