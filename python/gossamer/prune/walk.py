# SPDX-License-Identifier: BSD-3-Clause
"""How far a walk through a model has come, and its steps on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from gossamer.prune.calibrated_layer import CalibratedLayer
from gossamer.prune.calibration_report import BlockResult, CalibrationReport, LayerResult
from gossamer.prune.capture import Order
from gossamer.prune.journal import Journal
from gossamer.prune.ranks import Ranks

__all__ = ["Walk"]


@dataclass
class Walk:
    """The report so far, and how many steps are behind.

    Attributes:
        report: of what was done.
        order: in which layers are called.
        layers: all that may be pruned, by full names.
        journal: keeps each step, and has those that were made before a crash; None for nothing.
        ranks: take a step over from it where all of them have it.
        halves: weights fitted to the first half of the batches alone, by full names.
        steps: how many are behind.
    """

    report: CalibrationReport
    order: Order
    layers: Mapping[str, CalibratedLayer]
    journal: Journal | None
    ranks: Ranks
    halves: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def keep(self, changed: Sequence[str], **found: Any) -> None:
        """Writes a step: what was found, and the weights and masks that it changed."""
        if self.journal is not None:
            entry: dict[str, Any] = {key: found.get(key, {}) for key in ("left_dense", "not_alone")}
            for key in ("layers", "blocks"):
                entry[key] = [asdict(result) for result in found.get(key, ())]
            entry["weights"] = {fqn: self.layers[fqn].weight.data for fqn in changed}
            entry["masks"] = {fqn: self.layers[fqn].mask.mask for fqn in changed}
            entry["halves"] = {fqn: self.halves[fqn] for fqn in changed if fqn in self.halves}
            self.journal.save(self.steps, entry)
        self.steps += 1

    def restore(self) -> bool:
        """Takes the next step over from the journal; False where it was never completed."""
        if self.journal is None:
            return False
        with self.ranks.together():
            entry = self.journal.load(self.steps)
        if not all(self.ranks.each(entry is not None)) or entry is None:
            return False
        for fqn, weight in entry["weights"].items():
            layer = self.layers[fqn]
            layer.weight.data = weight.to(layer.weight.device)
            layer.mask.mask.copy_(entry["masks"][fqn])
            if fqn in entry["halves"]:
                self.halves[fqn] = entry["halves"][fqn].to(layer.weight.device)
        self.report.layers += [LayerResult(**result) for result in entry["layers"]]
        self.report.blocks += [BlockResult(**result) for result in entry["blocks"]]
        self.report.left_dense.update(entry["left_dense"])
        self.report.not_alone.update(entry["not_alone"])
        self.steps += 1
        return True
