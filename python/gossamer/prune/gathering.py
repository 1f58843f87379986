# SPDX-License-Identifier: BSD-3-Clause
"""What a layer's inputs add up to, as far as a method reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gossamer.prune.calibrated_layer import CalibratedLayer, Norms, Sums
from gossamer.prune.correction import FOLDS
from gossamer.prune.inputs import Inputs
from gossamer.prune.ranks import Ranks

__all__ = ["WIDE", "Gathering"]

WIDE = 1024
"""Up to so many inputs a Gram matrix takes no longer than running the layer: errors are by it."""


class _UnpairedError(Exception):
    """The two models give a layer other rows."""


@dataclass(frozen=True)
class Gathering:
    """Sums over the inputs of layers.

    Attributes:
        inputs: gives them.
        batches: how many there are.
        target: as for `Calibration`.
        needs_gram: whether wide layers have a Gram matrix too.
        judges_correction: whether the correction to the dense target is judged on folds.
        judges_tuning: whether the tuning of blocks is.
        ranks: whose batches count.
    """

    inputs: Inputs
    batches: int
    target: str
    needs_gram: bool
    judges_correction: bool
    judges_tuning: bool
    ranks: Ranks

    def sums(
        self, layer: CalibratedLayer, calls: Sequence[int | None], *, routed: bool
    ) -> tuple[Sums | Norms, list[str]]:
        """Runs all batches.

        Args:
            layer: the first of a group that gets the same inputs.
            calls: how often each batch calls it; None where that may change as layers are pruned.
            routed: whether a router picks its rows.

        Returns:
            The sums, and remarks for the report.

        Raises:
            ValueError: inputs are not finite.
        """
        size = layer.form.matrices(self.inputs.dense[layer.fqn]).shape[-1]
        if not self.needs_gram and size > WIDE:
            with self.ranks.together():
                norms = self._norms(layer, calls, size)
            norms.over(self.ranks)
            return norms, []
        corrects, remarks = self.target == "dense-target", []
        sums = self._sums(layer, calls, size, corrects=corrects and not routed)
        if sums is None or (corrects and routed):
            remarks.append("sparse-inputs: the two models route other tokens to it")
        if sums is None:
            sums = self._sums(layer, calls, size, corrects=False)
        assert sums is not None
        return sums, remarks

    def _norms(self, layer: CalibratedLayer, calls: Sequence[int | None], size: int) -> Norms:
        norms = Norms.zeros(layer, size)
        for index in range(self.batches):
            for x in self.inputs.of_layer(layer, index, calls, self.target == "dense-inputs"):
                norms.add(layer, x)
            _check_finite(layer, norms.energies, index)
        return norms

    def _sums(
        self, layer: CalibratedLayer, calls: Sequence[int | None], size: int, *, corrects: bool
    ) -> Sums | None:
        """Of all ranks; None where one of them finds no pairs."""
        found: Sums | None = None
        most = max(self.ranks.each(self.batches))
        with self.ranks.together(), contextlib.suppress(_UnpairedError):
            found = self._own_sums(layer, calls, size, corrects=corrects, most=most)
        if not all(self.ranks.each(found is not None)) or found is None:
            return None
        found.over(self.ranks)
        return found

    def _own_sums(
        self,
        layer: CalibratedLayer,
        calls: Sequence[int | None],
        size: int,
        *,
        corrects: bool,
        most: int,
    ) -> Sums:
        judged = (self.judges_correction and corrects) or self.judges_tuning
        folds = min(FOLDS, most) if judged else 1
        sums = Sums.zeros(layer, size, corrects=corrects, folds=folds)
        for index in range(self.batches):
            inputs = self.inputs.of_layer(layer, index, calls, self.target == "dense-inputs")
            dense: Sequence[Tensor | None] = [None] * len(inputs)
            if corrects:
                dense = self.inputs.of_layer(layer, index, calls, True)
                if [x.shape for x in inputs] != [x0.shape for x0 in dense if x0 is not None]:
                    raise _UnpairedError
            for x, x0 in zip(inputs, dense, strict=True):
                sums.add(layer, x, x0, index)
            _check_finite(layer, sums.energies, index)
        return sums


def _check_finite(layer: CalibratedLayer, energies: Tensor, index: int) -> None:
    if not bool(energies.isfinite().all()):
        raise ValueError(
            f"'{layer.fqn}': its inputs hold NaN or infinity in batch {index}; look for "
            "the layer before it that overflows, or calibrate in float32"
        )
