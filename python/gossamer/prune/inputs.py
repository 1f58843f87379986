# SPDX-License-Identifier: BSD-3-Clause
"""What layers and blocks are given, in the model pruned so far and in the dense one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.prune.batches import Forward
from gossamer.prune.calibrated_layer import CalibratedLayer
from gossamer.prune.capture import capture_call, capture_inputs
from gossamer.prune.kept_calls import Kept
from gossamer.prune.stages import Call, Stage, advance, input_of, replay

__all__ = ["Inputs"]


@dataclass
class _Stream:
    """Where one of the two models, pruned so far and dense, is in its walk over the stages."""

    stage: Stage | None = None
    calls: Kept[Call] = field(default_factory=lambda: Kept(None))


class Inputs:
    """Runs as little of a model as there must be.

    Attributes:
        dense: the dense weights, by the layers' full names.
        stages: the block of each layer that is in one which follows others.

    Args:
        model: in evaluation mode.
        layers: what is pruned, by full names.
        batches: what the model is called with.
        forward: how.
        offload: keeps the inputs of blocks in the memory of the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, CalibratedLayer],
        batches: Sequence[Any],
        forward: Forward,
        offload: bool,
    ) -> None:
        self.dense: dict[str, Tensor] = {}
        self.stages: dict[str, Stage] = {}
        self._model, self._layers = model, layers
        self._batches, self._forward, self._offload = batches, forward, offload
        self._streams = {"pruned": _Stream(), "dense": _Stream()}

    def memory(self) -> torch.device | None:
        """Where inputs of blocks have to be brought back to; None where they stay."""
        return next(iter(self._layers.values())).weight.device if self._offload else None

    def of_layer(
        self, layer: CalibratedLayer, index: int, calls: Sequence[int | None], dense: bool
    ) -> list[Tensor]:
        """What the layer gets from one batch, in the dense or the pruned model, as rows."""
        stage = self.stages.get(layer.fqn)
        with self.as_dense() if dense else contextlib.nullcontext():
            if stage is None:
                seen = capture_inputs(
                    self._model, layer.module, self._batches[index], self._forward, calls[index]
                )
            else:
                call = self.of_stage(stage, dense)[index]
                seen = capture_inputs(
                    stage.module,
                    layer.module,
                    call,
                    lambda _, own: replay(stage, own),
                    calls[index],
                )
        return [layer.form.rows(layer.module, x) for x in seen]

    def of_stage(self, stage: Stage, dense: bool) -> Sequence[Call]:
        """The arguments of a stage for each batch; runs the stage before it where that gives them.

        The layers of that stage, and all before it, are pruned by now.
        """
        stream = self._streams["dense" if dense else "pruned"]
        if stream.stage is stage:
            return stream.calls
        passed = _between(stream.stage, stage)
        if passed is None:
            stream.calls = Kept(self.memory())
            for batch in self._batches:
                call = capture_call(self._model, stage.module, batch, self._forward)
                stream.calls.append(call)
        for last in passed or []:
            for index in range(len(stream.calls)):
                stream.calls[index] = advance(last, stream.calls[index])
        stream.stage = stage
        return stream.calls

    def paired(self, stage: Stage) -> bool:
        """Whether a stage gets as many rows in both models, in every batch."""
        pruned = [input_of(call).shape for call in self.of_stage(stage, False)]
        with self.as_dense():
            return pruned == [input_of(call).shape for call in self.of_stage(stage, True)]

    @contextlib.contextmanager
    def as_dense(self) -> Iterator[None]:
        """The model with its dense weights; nothing is copied."""
        pruned = {fqn: layer.weight.data for fqn, layer in self._layers.items()}
        masks = {fqn: layer.mask.mask for fqn, layer in self._layers.items()}
        for fqn, layer in self._layers.items():
            layer.weight.data = self.dense[fqn]
            layer.mask._buffers["mask"] = torch.ones((), dtype=torch.bool, device=masks[fqn].device)
        try:
            yield
        finally:
            for fqn, layer in self._layers.items():
                layer.weight.data = pruned[fqn]
                layer.mask._buffers["mask"] = masks[fqn]


def _between(begin: Stage | None, end: Stage) -> list[Stage] | None:
    """The stages to run to get from the input of one to that of another; None where none do."""
    passed: list[Stage] = []
    stage = end.follows
    while stage is not None:
        passed.insert(0, stage)
        if stage is begin:
            return passed
        stage = stage.follows
    return None
