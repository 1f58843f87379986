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
    layer cannot: nonlinearities, normalisation, and what a residual connection carries past.

    What comes out is the epoch with the lowest loss, which is the start where tuning does not help.

    Attributes:
        epochs: passes over the batches.
        rate: the first step's length, as a fraction of the root mean square of a layer's kept
            weights; it falls to 0 on a cosine.
        held_out: the fraction of the batches, the last ones, that are not trained on and judge the
            epochs instead; 0 judges on all. Layers were fitted to these batches before, so that
            they favour the start.
    """

    epochs: int = 20
    rate: float = 0.02
    held_out: float = 0.0

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
            The loss before and after on the batches that judge, as a fraction of ‖B₀(X₀)‖².
        """
        seen = max(1, len(calls) - round(len(calls) * self.held_out))
        judge = range(seen, len(calls)) if seen < len(calls) else range(len(calls))
        frozen = [weight for weight in weights if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            before, after = self._descend(stage, weights, calls, wanted, seen, judge)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
        return before, after

    def _descend(
        self,
        stage: Stage,
        weights: Sequence[nn.Parameter],
        calls: Sequence[Call],
        goals: Sequence[Tensor],
        seen: int,
        judge: range,
    ) -> tuple[float, float]:
        masters = [weight.detach().float().clone() for weight in weights]
        lengths = [self.rate * float(_root_mean_square(master)) for master in masters]
        first = [torch.zeros_like(master) for master in masters]
        second = [torch.zeros_like(master) for master in masters]
        best = [weight.detach().clone() for weight in weights]
        before = after = self._loss(stage, calls, goals, judge)
        steps = self.epochs * seen
        for step in range(steps):
            call, wanted = calls[step % seen], goals[step % seen]
            with torch.enable_grad():
                missed = output_of(stage, call).float() - wanted.float()
                loss = missed.square().sum() / wanted.float().square().sum().clamp(min=_SMALL)
            # A batch may pass by some of the weights, or all: an expert, say.
            grads = _gradients(loss, weights)
            decay = (1 + math.cos(math.pi * step / steps)) / 2
            fixes = [1 - beta ** (step + 1) for beta in _BETAS]
            for i, grad in enumerate(grads):
                first[i].lerp_(grad.float(), 1 - _BETAS[0])
                second[i].lerp_(grad.float().square(), 1 - _BETAS[1])
                size = (second[i] / fixes[1]).sqrt() + _SMALL
                masters[i] -= decay * lengths[i] * (first[i] / fixes[0]) / size
                weights[i].data.copy_(masters[i])
            if (step + 1) % seen:
                continue
            now = self._loss(stage, calls, goals, judge)
            if now < after:
                after, best = now, [weight.detach().clone() for weight in weights]
        for weight, value in zip(weights, best, strict=True):
            weight.data.copy_(value)
        return before, after

    @staticmethod
    def _loss(stage: Stage, calls: Sequence[Call], goals: Sequence[Tensor], judge: range) -> float:
        missed = whole = 0.0
        for index in judge:
            wanted = goals[index].double()
            missed += float((output_of(stage, calls[index]).double() - wanted).square().sum())
            whole += float(wanted.square().sum())
        return missed / max(whole, _SMALL)


def _gradients(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Zero for weights that the loss does not see; the .grad of all parameters stays alone."""
    if not loss.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(loss, list(weights), allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return [torch.zeros_like(w) if grad is None else grad for grad, w in pairs]


def _root_mean_square(weight: Tensor) -> Tensor:
    kept = weight[weight != 0]
    return kept.square().mean().sqrt() if kept.numel() else weight.new_zeros(())
