# SPDX-License-Identifier: BSD-3-Clause
"""Tuning a block's kept weights so that the block gives what it gave in the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.prune.ranks import ALONE, Ranks
from gossamer.prune.stages import Call, Stage, output_of

__all__ = ["Reconstruction", "Tuned"]

_BETAS = (0.9, 0.99)
_SMALL = 1e-12
_PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Reconstruction:
    """A few passes of Adam over the calibration data, one block at a time.

    Minimises ‖B(X) − B₀(X₀)‖² over the weights that are kept in block B, where X is what the block
    gets in the pruned model and B₀(X₀) what the dense one gives. It sees what least squares on one
    layer cannot: nonlinearities, normalisation, and what a residual connection carries past.

    A block has as many weights as a small calibration set has outputs, so that the loss on what it
    is tuned on says little. With `held_out` a first run decides how much of it is worth having: it
    starts from weights that were fitted to one half of the batches, is tuned on that half, and the
    other half chooses how far to go from the one to the other. The second run starts from weights
    that were fitted to all batches, is tuned on all, and goes as far; it is left out where the
    first one said not at all.

    Attributes:
        epochs: passes over the batches.
        rate: the first step's length, as a fraction of the root mean square of a layer's kept
            weights; it falls to 0 on a cosine.
        held_out: whether batches that are held out decide. Without it, and for a single batch,
            the epoch with the lowest loss is taken, the start included.
    """

    epochs: int = 20
    rate: float = 0.02
    held_out: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0:
            raise ValueError(
                f"Reconstruction: epochs={self.epochs}, rate={self.rate}: numbers above 0 are "
                "accepted; reconstruction=None tunes nothing"
            )

    def run(
        self,
        stage: Stage,
        weights: Sequence[nn.Parameter],
        calls: Sequence[Call],
        wanted: Sequence[Tensor],
        half: Sequence[Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> Tuned:
        """Changes the weights in place.

        Args:
            stage: the block.
            weights: the dense parameters under its live masks; others stay as they are.
            calls: the block's arguments for each batch.
            wanted: what it is to give for each.
            half: the weights as fitted to the batches 0, 2, 4, … alone; None takes the best epoch.
            ranks: each descends on the mean of all gradients, as many batches as the rank with the
                fewest has.
        """
        frozen = [weight for weight in weights if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            return self._tune(_Block(stage, weights, calls, wanted, ranks), half)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)

    def _tune(self, block: _Block, half: Sequence[Tensor] | None) -> Tuned:
        everything = block.batches()
        before = block.loss(everything)
        if not block.weights:
            return Tuned(before, before, 0.0)
        start = block.values()
        if half is None or len(everything) < 2:
            return self._best_epoch(block, before)
        block.write(half)
        self._descend(block, everything[::2])
        part = _best_part(block, half, block.values(), everything[1::2])
        block.write(start)
        if part == 0:
            return Tuned(before, before, part)
        self._descend(block, everything)
        block.write(_between(start, block.values(), part))
        return Tuned(before, block.loss(everything), part)

    def _best_epoch(self, block: _Block, before: float) -> Tuned:
        everything, best, after = block.batches(), block.values(), before
        for _ in self._epochs(block, everything):
            now = block.loss(everything)
            if now < after:
                after, best = now, block.values()
        block.write(best)
        return Tuned(before, after, 1.0)

    def _descend(self, block: _Block, seen: Sequence[int]) -> None:
        for _ in self._epochs(block, seen):
            pass

    def _epochs(self, block: _Block, seen: Sequence[int]) -> Iterator[None]:
        """Yields after each epoch."""
        weights = block.weights
        masters = [weight.detach().float().clone() for weight in weights]
        lengths = [self.rate * float(_root_mean_square(master)) for master in masters]
        first = [torch.zeros_like(master) for master in masters]
        second = [torch.zeros_like(master) for master in masters]
        steps = self.epochs * len(seen)
        for step in range(steps):
            grads = block.gradients(seen[step % len(seen)])
            decay = (1 + math.cos(math.pi * step / steps)) / 2
            fixes = [1 - beta ** (step + 1) for beta in _BETAS]
            for i, grad in enumerate(grads):
                first[i].lerp_(grad.float(), 1 - _BETAS[0])
                second[i].lerp_(grad.float().square(), 1 - _BETAS[1])
                size = (second[i] / fixes[1]).sqrt() + _SMALL
                masters[i] -= decay * lengths[i] * (first[i] / fixes[0]) / size
                weights[i].data.copy_(masters[i])
            if (step + 1) % len(seen) == 0:
                yield


@dataclass(frozen=True)
class Tuned:
    """What tuning did to a block.

    Attributes:
        before: the loss on all batches before, as a fraction of ‖B₀(X₀)‖².
        after: the same after.
        part: how far the weights went to where tuning led, from 0 to 1.
    """

    before: float
    after: float
    part: float


@dataclass(frozen=True)
class _Block:
    """A block, the weights that are tuned, its arguments, and what it is to give for each."""

    stage: Stage
    weights: Sequence[nn.Parameter]
    calls: Sequence[Call]
    goals: Sequence[Tensor]
    ranks: Ranks

    def batches(self) -> range:
        """Those that every rank has."""
        return range(min(self.ranks.each(len(self.calls))))

    def values(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    def write(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.data.copy_(value)

    def gradients(self, index: int) -> list[Tensor]:
        """Of the loss of one batch."""
        call, wanted = self.calls[index], self.goals[index]
        with torch.enable_grad():
            missed = output_of(self.stage, call).float() - wanted.float()
            loss = missed.square().sum() / wanted.float().square().sum().clamp(min=_SMALL)
        # A batch may pass by some of the weights, or all: an expert, say.
        found = _gradients(loss, self.weights)
        self.ranks.add_(*found)
        return [grad / self.ranks.count for grad in found] if self.ranks.count > 1 else found

    def loss(self, judges: Iterable[int]) -> float:
        missed = whole = 0.0
        for index in judges:
            wanted = self.goals[index].double()
            given = output_of(self.stage, self.calls[index]).double()
            missed += float((given - wanted).square().sum())
            whole += float(wanted.square().sum())
        every = self.ranks.each((missed, whole))
        missed, whole = (sum(part) for part in zip(*every, strict=True))
        return missed / max(whole, _SMALL)


def _between(start: Sequence[Tensor], end: Sequence[Tensor], part: float) -> list[Tensor]:
    return [
        torch.lerp(a.float(), b.float(), part).to(a.dtype) for a, b in zip(start, end, strict=True)
    ]


def _best_part(
    block: _Block, start: Sequence[Tensor], end: Sequence[Tensor], judges: Sequence[int]
) -> float:
    """How far from start to end the loss of the judges is lowest."""
    losses = {}
    for part in _PARTS:
        block.write(_between(start, end, part))
        losses[part] = block.loss(judges)
    return min(losses, key=lambda part: losses[part])


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
