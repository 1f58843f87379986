# SPDX-License-Identifier: BSD-3-Clause
"""What layers see, saved so that `gossamer prune` can use it without Python."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer.prune.batches import Forward, each_batch, run_batch
from gossamer.prune.capture import evaluating, watch_inputs
from gossamer.prune.layer import LayerForm
from gossamer.prune.targets import Config, Target, choose, find_targets

__all__ = ["save_statistics"]

_KINDS = ("gram", "norms")


def save_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    path: str | Path,
    *,
    kind: str = "gram",
    dtype: torch.dtype = torch.float64,
    config: Config = None,
    forward: Forward = run_batch,
) -> dict[str, int]:
    """Runs a dense model and saves what its layers were given, for `gossamer prune --stats`.

    All layers are watched in one pass: memory is that of all matrices that are saved. The command
    then gives what `Wanda`, `RIA` and `SparseGPT` give with the target "dense-inputs". The format
    is in docs/formats.md.

    Args:
        model: runs in evaluation mode, without gradients; it comes back in the mode it had.
        batches: as for `OneShot.calibrate`; run once.
        path: the file to write.
        kind: "gram" saves XᵀX / tokens, [groups, in, in] for each layer; "norms" saves
            ‖x_j‖₂ / √tokens, [groups, in], enough for wanda and ria.
        dtype: of what is saved: torch.float64 or torch.float32.
        config: which weights, as for `Sparsifier.prepare`; patterns are not read.
        forward: as for `OneShot.calibrate`.

    Returns:
        How many inputs (patches of a convolution) each saved weight saw. Those that saw none are
        not saved.

    Raises:
        ValueError: an argument is not accepted, there is no batch, or inputs are not finite.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind {kind!r}: one of {list(_KINDS)} is accepted")
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype {dtype}: torch.float64 or torch.float32 is accepted")
    watched = {target.fqn: _Watched(target) for target, _ in choose(find_targets(model), config)}
    modules = {fqn: one.target.module for fqn, one in watched.items()}
    seen = 0
    with evaluating(model), watch_inputs(model, modules, lambda fqn, x: watched[fqn].add(x, kind)):
        for batch in each_batch("save_statistics", batches):
            forward(model, batch)
            seen += 1
    if not seen:
        raise ValueError("save_statistics: there are no batches; pass at least one")
    arrays: dict[str, Tensor] = {}
    metadata = {"gossamer.stats": "1"}
    reached = {fqn: one for fqn, one in watched.items() if one.tokens}
    for fqn, one in reached.items():
        arrays[f"{fqn}.{kind}"] = one.mean(kind).to("cpu", dtype).contiguous()
        metadata[f"gossamer.stats.{fqn}"] = json.dumps(one.description())
    save_file(arrays, str(path), metadata)
    return {fqn: one.tokens for fqn, one in reached.items()}


class _Watched:
    """Sums over the inputs of one layer."""

    def __init__(self, target: Target) -> None:
        assert target.weight is not None
        try:
            self.form = LayerForm.of(target.module, target.weight)
        except ValueError as error:
            raise ValueError(f"save_statistics: '{target.fqn}' {error}") from None
        self.target = target
        self.tokens = 0
        self._sums: Tensor | None = None

    def add(self, x: Tensor, kind: str) -> None:
        """Counts the inputs of one call."""
        rows = self.form.rows(self.target.module, x)
        groups, tokens, inputs = rows.shape
        if self._sums is None:
            size = (groups, inputs, inputs) if kind == "gram" else (groups, inputs)
            self._sums = torch.zeros(size, dtype=torch.float64, device=rows.device)
        if kind == "norms":
            self._sums += rows.double().square().sum(dim=1)
        else:
            for total, own in zip(self._sums, rows, strict=True):
                torch.ops.gossamer.gram_(total, own.float(), own.float())
        self.tokens += tokens
        if not bool(self._sums.isfinite().all()):
            raise ValueError(
                f"'{self.target.fqn}': its inputs hold NaN or infinity; look for the layer before "
                "it that overflows, or run in float32"
            )

    def mean(self, kind: str) -> Tensor:
        """What is saved, float64."""
        assert self._sums is not None
        mean = self._sums / self.tokens
        return mean if kind == "gram" else mean.sqrt()

    def description(self) -> dict[str, Any]:
        """The metadata of docs/formats.md."""
        return {
            "tokens": self.tokens,
            "groups": self.form.groups,
            "segment": self.form.segment,
            "transposed": self.form.form.transposed,
        }
