# SPDX-License-Identifier: BSD-3-Clause
"""Tuning a block's kept weights so that the block gives what it gave in the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
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

    A block has as many weights as a small calibration set has outputs, so that the loss on what it
    is tuned on says little. Batches that are held out decide how long it is tuned: a first run
    without them finds the number of epochs at which their loss is lowest, which is 0 where tuning
    does not help, and a second one makes as many on all batches. The layers of the block were
    fitted to all batches before, so that those held out favour the start: tuning has to be worth
    more than what it forgets of them.

    Attributes:
        epochs: passes over the batches, at most.
        rate: the first step's length, as a fraction of the root mean square of a layer's kept
            weights; it falls to 0 on a cosine.
        held_out: the fraction of the batches, evenly among them, that judge. With 0, or a single
            batch, all of them train and judge in one run.
        patience: the first run ends when so many epochs did not lower the loss.
    """

    epochs: int = 20
    rate: float = 0.02
    held_out: float = 0.25
    patience: int = 4

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0 or self.patience < 1:
            raise ValueError(
                f"Reconstruction: epochs={self.epochs}, rate={self.rate}, patience={self.patience}"
                ": numbers above 0 are accepted; reconstruction=None tunes nothing"
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"Reconstruction: held_out={self.held_out}: a fraction from 0 to below 1 is "
                "accepted"
            )

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
            The loss on all batches before and after, as a fraction of ‖B₀(X₀)‖².
        """
        frozen = [weight for weight in weights if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            return self._tune(_Block(stage, weights, calls, wanted))
        finally:
            for weight in frozen:
                weight.requires_grad_(False)

    def _tune(self, block: _Block) -> tuple[float, float]:
        everything = range(len(block.calls))
        judges = self.judges(len(everything))
        start = [weight.detach().clone() for weight in block.weights]
        if not judges:
            found = self._descend(block, everything, everything, self.epochs)
            return found.before, found.after
        others = [index for index in everything if index not in judges]
        before = block.loss(everything)
        found = self._descend(block, others, judges, self.patience)
        block.write(start)
        for _ in self._epochs(block, everything, found.epoch):
            pass
        return before, block.loss(everything)

    def judges(self, batches: int) -> list[int]:
        """The batches that are held out, of so many: every so many there is one."""
        count = min(round(batches * self.held_out), batches - 1)
        return [(2 * i + 1) * batches // (2 * count) for i in range(count)]

    def _descend(
        self, block: _Block, seen: Sequence[int], judges: Sequence[int], patience: int
    ) -> _Found:
        """Leaves the weights of the best epoch in the block."""
        best = [weight.detach().clone() for weight in block.weights]
        before = block.loss(judges)
        found = _Found(0, before, before)
        for epoch in self._epochs(block, seen, self.epochs):
            now = block.loss(judges)
            if now < found.after:
                found = _Found(epoch, before, now)
                best = [weight.detach().clone() for weight in block.weights]
            elif epoch - found.epoch >= patience:
                break
        block.write(best)
        return found

    def _epochs(self, block: _Block, seen: Sequence[int], count: int) -> Iterator[int]:
        """Makes `count` epochs; yields the number of each, from 1."""
        weights = block.weights
        masters = [weight.detach().float().clone() for weight in weights]
        lengths = [self.rate * float(_root_mean_square(master)) for master in masters]
        first = [torch.zeros_like(master) for master in masters]
        second = [torch.zeros_like(master) for master in masters]
        for step in range(count * len(seen)):
            grads = block.gradients(seen[step % len(seen)])
            # The first of many epochs is the same however many follow.
            decay = (1 + math.cos(math.pi * step / (self.epochs * len(seen)))) / 2
            fixes = [1 - beta ** (step + 1) for beta in _BETAS]
            for i, grad in enumerate(grads):
                first[i].lerp_(grad.float(), 1 - _BETAS[0])
                second[i].lerp_(grad.float().square(), 1 - _BETAS[1])
                size = (second[i] / fixes[1]).sqrt() + _SMALL
                masters[i] -= decay * lengths[i] * (first[i] / fixes[0]) / size
                weights[i].data.copy_(masters[i])
            if (step + 1) % len(seen) == 0:
                yield (step + 1) // len(seen)


@dataclass(frozen=True)
class _Found:
    """The epoch with the lowest loss, 0 for the start, and that loss beside the start's."""

    epoch: int
    before: float
    after: float


@dataclass(frozen=True)
class _Block:
    """A block, the weights that are tuned, its arguments, and what it is to give for each."""

    stage: Stage
    weights: Sequence[nn.Parameter]
    calls: Sequence[Call]
    goals: Sequence[Tensor]

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
        return _gradients(loss, self.weights)

    def loss(self, judges: Iterable[int]) -> float:
        missed = whole = 0.0
        for index in judges:
            wanted = self.goals[index].double()
            given = output_of(self.stage, self.calls[index]).double()
            missed += float((given - wanted).square().sum())
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
