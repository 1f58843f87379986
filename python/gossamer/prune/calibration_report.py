# SPDX-License-Identifier: BSD-3-Clause
"""What calibration did to each layer."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

__all__ = ["BlockResult", "CalibrationReport", "LayerResult", "show_progress"]


@dataclass
class LayerResult:
    """One layer.

    Attributes:
        fqn: the weight's full name.
        shape: the weight's shape.
        pattern: the pattern's text.
        tokens: rows of inputs that were seen (patches of a convolution).
        zeros: fraction of zeros.
        error: ‖(W − Ŵ)·X‖² / ‖W·X‖², W as calibration found it, over `error_tokens` of the inputs.
        target_error: ‖W·X₀ − Ŵ·X‖² / ‖W·X₀‖² with the target "dense-target", X₀ the inputs of the
            layer in the dense model; None with others.
        damping: of the Gram matrix, as a fraction of its mean diagonal.
        asked_damping: what it was before it was raised.
        notes: what parts report.
        seconds: time of the parts.
        error_tokens: how many inputs the error is over: all, or, of a wide layer whose method needs
            no Gram matrix, at most 768, evenly spaced over all batches. None stands for all.
        tunable: whether both halves of the batches reach it, so that one can judge how far its
            block is tuned on the other; else tuning leaves it as it is.
        remarks: what was not done, and why.
        zeros_before: fraction of zeros in W, the weight as calibration found it: 0 of a dense one.
            Where an earlier run has written zeros, `error` says what this one added.
    """

    fqn: str
    shape: list[int]
    pattern: str
    tokens: int
    zeros: float
    error: float
    target_error: float | None
    damping: float
    asked_damping: float
    notes: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error_tokens: int | None = None
    tunable: bool = True
    remarks: list[str] = field(default_factory=list)
    zeros_before: float = 0.0

    @property
    def was_sparse(self) -> bool:
        """Whether W had zeros, a whole percent at least: some weights are zero by chance."""
        return self.zeros_before >= 0.01


def show_progress(result: LayerResult, number: int, count: int) -> None:
    """A line on standard error for each layer: `calibrate(batches, progress=show_progress)`."""
    width = len(str(count))
    bar = "#" * (20 * number // count)
    sys.stderr.write(
        f"[{bar:<20}] {number:>{width}}/{count}  {result.fqn}: error {result.error:.4f}\n"
    )


@dataclass
class BlockResult:
    """One block that was tuned after its layers were pruned.

    Attributes:
        name: the block's full name.
        before: ‖B(X) − B₀(X₀)‖² / ‖B₀(X₀)‖² before, over all batches.
        after: the same after.
        seconds: time of tuning it.
        part: how much of the change was taken; 0 where held-out batches were better off without.
    """

    name: str
    before: float
    after: float
    seconds: float
    part: float = 1.0


@dataclass
class CalibrationReport:
    """All layers, in the order in which they were pruned.

    Attributes:
        target: what was reproduced.
        layers: one result for each.
        blocks: one result for each block that was tuned.
        left_dense: layers that calibration left dense, with the reason.
        not_alone: blocks that could not be run by themselves, with the reason: what they hold took
            whole forward passes, and no reconstruction tuned them.
        remarks: what else could not be done, and what that means.
    """

    target: str = "sparse-inputs"
    layers: list[LayerResult] = field(default_factory=list)
    blocks: list[BlockResult] = field(default_factory=list)
    left_dense: dict[str, str] = field(default_factory=dict)
    not_alone: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def mean_error(self) -> float:
        """The mean of the layers' errors; 0 for none."""
        return sum(layer.error for layer in self.layers) / max(len(self.layers), 1)

    @property
    def caveat(self) -> str:
        """What is to be known before errors are compared; empty where there is nothing."""
        sparse = sum(layer.was_sparse for layer in self.layers)
        if not sparse:
            return ""
        return (
            f"{sparse} of {len(self.layers)} weights were sparse before: their errors are against "
            "what they were then, not against a dense model; load dense weights to prune those"
        )

    def __str__(self) -> str:
        width = max((len(layer.fqn) for layer in self.layers), default=5)
        lines = [f"{'layer':<{width}}  pattern            zeros    error   target  seconds"]
        for layer in self.layers:
            target = "      –" if layer.target_error is None else f"{layer.target_error:7.4f}"
            remarks = list(layer.remarks)
            if layer.damping != layer.asked_damping:
                remarks.append(f"damping raised from {layer.asked_damping:g} to {layer.damping:g}")
            if layer.error_tokens is not None:
                remarks.append(f"error over {layer.error_tokens} of {layer.tokens} inputs")
            if layer.was_sparse:
                remarks.append(f"{layer.zeros_before:.0%} zeros before")
            lines.append(
                f"{layer.fqn:<{width}}  {layer.pattern:<16} {layer.zeros:7.2%}  {layer.error:7.4f}"
                f"  {target}  {layer.seconds:7.2f}" + (f"  {'; '.join(remarks)}" if remarks else "")
            )
        lines += [f"{fqn:<{width}}  dense: {why}" for fqn, why in self.left_dense.items()]
        lines += [
            f"{block.name:<{width}}  block error {block.before:.4f} -> {block.after:.4f}"
            f" ({block.part:.0%} of the change)"
            for block in self.blocks
        ]
        lines += [
            f"{block:<{width}}  not run by itself, nor tuned: {why}"
            for block, why in self.not_alone.items()
        ]
        lines.append(f"mean error {self.mean_error:.4f}, target {self.target}")
        return "\n".join([*lines, *self.remarks, *([self.caveat] if self.caveat else [])])
