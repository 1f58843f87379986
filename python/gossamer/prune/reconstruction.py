# SPDX-License-Identifier: BSD-3-Clause
"""Tuning a block's kept weights so that the block gives what it gave in the dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.prune.stages import Call, Stage, output_of

__all__ = ["Reconstruction"]

_BETAS = (0.9, 0.99)
_SMALL = 1e-12


@dataclass(frozen=True)
class Reconstruction:
    """A few passes of Adam over the calibration data, one block at a time.

    Minimises ‖B(X) − B₀(X₀)‖² over the weights that are kept in block B, where X is what the block
    gets in the pruned model and B₀(X₀) what the dense one gives. It sees what least squares on one
    layer cannot: nonlinearities, normalisation, and what a residual connection carries past. Where
    the loss does not fall, the weights stay as they were.

    Attributes:
        epochs: passes over the batches.
        rate: the first step's length, as a fraction of the root mean square of a layer's kept
            weights; it falls to 0 on a cosine.
    """

    epochs: int = 20
    rate: float = 0.02

    def run(
        self,
        stage: Stage,
        weights: Sequence[nn.Parameter],
        calls: Sequence[Call],
        wanted: Sequence[Tensor],
    ) -> tuple[float, float]:
        """Changes the weights in place.

        Args:
            stage: the block.
            weights: the dense parameters under its live masks.
            calls: the block's arguments for each batch.
            wanted: what it is to give for each.

        Returns:
            The loss before and after, as a fraction of ‖B₀(X₀)‖².
        """
        whole = sum(float(y.double().square().sum()) for y in wanted) + _SMALL
        before = self._loss(stage, calls, wanted) / whole
        saved = [weight.detach().clone() for weight in weights]
        frozen = [weight for weight in weights if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            self._descend(stage, weights, calls, wanted, whole / len(calls))
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
        after = self._loss(stage, calls, wanted) / whole
        if after < before:
            return before, after
        for weight, value in zip(weights, saved, strict=True):
            weight.data.copy_(value)
        return before, before

    def _descend(
        self,
        stage: Stage,
        weights: Sequence[nn.Parameter],
        calls: Sequence[Call],
        wanted: Sequence[Tensor],
        scale: float,
    ) -> None:
        masters = [weight.detach().float().clone() for weight in weights]
        lengths = [self.rate * float(_root_mean_square(master)) for master in masters]
        first = [torch.zeros_like(master) for master in masters]
        second = [torch.zeros_like(master) for master in masters]
        steps = self.epochs * len(calls)
        for step in range(steps):
            index = step % len(calls)
            with torch.enable_grad():
                missed = output_of(stage, calls[index]).float() - wanted[index].float()
                # autograd.grad leaves the .grad of all parameters alone.
                grads = torch.autograd.grad(missed.square().sum() / scale, list(weights))
            decay = (1 + math.cos(math.pi * step / steps)) / 2
            fixes = [1 - beta ** (step + 1) for beta in _BETAS]
            for i, grad in enumerate(grads):
                first[i].lerp_(grad.float(), 1 - _BETAS[0])
                second[i].lerp_(grad.float().square(), 1 - _BETAS[1])
                size = (second[i] / fixes[1]).sqrt() + _SMALL
                masters[i] -= decay * lengths[i] * (first[i] / fixes[0]) / size
                weights[i].data.copy_(masters[i])

    @staticmethod
    def _loss(stage: Stage, calls: Sequence[Call], wanted: Sequence[Tensor]) -> float:
        pairs = zip(calls, wanted, strict=True)
        return sum(
            float((output_of(stage, c).double() - y.double()).square().sum()) for c, y in pairs
        )


def _root_mean_square(weight: Tensor) -> Tensor:
    kept = weight[weight != 0]
    return kept.square().mean().sqrt() if kept.numel() else weight.new_zeros(())
