# SPDX-License-Identifier: BSD-3-Clause
"""What each layer alone costs: accuracy over sparsity, one layer pruned at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gossamer.prune.batches import each_batch
from gossamer.prune.mask import detach, mask_of
from gossamer.prune.methods import Magnitude
from gossamer.prune.one_shot import OneShot
from gossamer.prune.sparsifier import Sparsifier
from gossamer.prune.targets import Config, Target, choose, find_targets

__all__ = ["Sensitivity", "measure_sensitivity"]


@dataclass
class Sensitivity:
    """Accuracy of a model with one layer pruned.

    Attributes:
        dense: accuracy before anything is pruned.
        patterns: what was tried on each layer.
        layers: full names of weights to the accuracy with each pattern, in the order of `patterns`.
        zeros: full names to the fraction of zeros that each pattern left.
    """

    dense: float
    patterns: list[str]
    layers: dict[str, list[float]] = field(default_factory=dict)
    zeros: dict[str, list[float]] = field(default_factory=dict)

    def most_sensitive(self, count: int = 5) -> list[str]:
        """The layers that lose most, on average over the patterns; the worst first."""
        ranked = sorted(self.layers, key=lambda name: sum(self.layers[name]))
        return ranked[:count]

    def __str__(self) -> str:
        width = max((len(name) for name in self.layers), default=5)
        columns = [max(len(pattern), 7) for pattern in self.patterns]
        heads = [f"{p:>{w}}" for p, w in zip(self.patterns, columns, strict=True)]
        lines = ["  ".join([f"{'layer':<{width}}", *heads])]
        for name, values in self.layers.items():
            cells = [f"{value:>{w}.2f}" for value, w in zip(values, columns, strict=True)]
            lines.append("  ".join([f"{name:<{width}}", *cells]))
        return "\n".join([*lines, f"dense {self.dense:.2f}"])


def measure_sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    patterns: Sequence[str] = ("unstructured:0.5", "unstructured:0.7", "unstructured:0.9"),
    *,
    method: Callable[[str], Sparsifier] = Magnitude,
    batches: Iterable[Any] | None = None,
    config: Config = None,
) -> Sensitivity:
    """Prunes each layer by itself with each pattern, and measures what that costs.

    Args:
        model: plain, without live masks; it comes back with the weights that it had.
        evaluate: the accuracy of a model, higher is better; called once for each layer and pattern,
            and once before.
        patterns: from the densest to the sparsest, so that curves read from the left.
        method: makes a sparsifier from a pattern.
        batches: for methods that calibrate (`OneShot`).
        config: which weights, as for `Sparsifier.prepare`; their own patterns are not read.

    Raises:
        ValueError: a weight has a live mask, a method lacks its batches, `evaluate` returns no
            number or NaN, or nothing is chosen. Whatever is raised, by `evaluate` or a method too,
            the weights are what they were then, without masks.
    """
    chosen = [target for target, _ in choose(find_targets(model), config)]
    for target in chosen:
        if target.mask is not None:
            raise ValueError(
                f"measure_sensitivity: '{target.fqn}' has a live mask; measure before "
                "prepare(model), or after squash_mask()"
            )
    held = None if batches is None else list(each_batch("measure_sensitivity", batches))
    result = Sensitivity(_number(evaluate(model)), list(patterns))
    for target in chosen:
        assert target.weight is not None
        dense = target.weight.detach().clone()
        accuracies, zeros = [], []
        for pattern in patterns:
            try:
                _prune_one(model, target, method(pattern), held)
                pruned = getattr(target.module, target.tensor_name).detach()
                zeros.append(1.0 - float(pruned.count_nonzero()) / max(pruned.numel(), 1))
                accuracies.append(_number(evaluate(model)))
            finally:
                with torch.no_grad():
                    getattr(target.module, target.tensor_name).copy_(dense)
        result.layers[target.fqn], result.zeros[target.fqn] = accuracies, zeros
    return result


def _number(accuracy: Any) -> float:
    try:
        value = float(accuracy)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(
            f"measure_sensitivity: evaluate returned {accuracy!r}; a number is accepted, the "
            "accuracy of the model that it is called with"
        )
    return value


def _prune_one(
    model: nn.Module, target: Target, sparsifier: Sparsifier, batches: list[Any] | None
) -> None:
    if isinstance(sparsifier, OneShot) and batches is None:
        raise ValueError(
            f"measure_sensitivity: {type(sparsifier).__name__} is calibrated; pass batches=[...]"
        )
    sparsifier.prepare(model, {target.fqn: {}})
    try:
        if isinstance(sparsifier, OneShot):
            sparsifier.calibrate(batches or [])
        else:
            sparsifier.step()
        sparsifier.squash_mask()
    except BaseException:
        # Not squash_mask: it refuses where no mask was found, and that would hide the error.
        detach([place for place in target.places if mask_of(*place) is not None])
        raise
