# SPDX-License-Identifier: BSD-3-Clause
"""What came of one way to prune a model, for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """One pruned model, or the dense one: a point of the Pareto plot.

    Attributes:
        method: how it was pruned.
        pattern: the pattern's text; "dense" for the dense model.
        zeros: fraction of zeros, 0 for the dense model.
        accuracy: in the unit that the page's `metric` names; higher is better.
        ms: measured time of a forward pass, milliseconds; None where it was not measured.

    Raises:
        ValueError: `zeros` is no fraction, or a figure is not finite.
    """

    method: str
    pattern: str
    zeros: float
    accuracy: float
    ms: float | None = None

    def __post_init__(self) -> None:
        name = f"Outcome {self.method!r}, {self.pattern!r}"
        if not 0 <= self.zeros <= 1:
            raise ValueError(f"{name}: zeros {self.zeros}: a fraction from 0 to 1 is accepted")
        for what, value in (("accuracy", self.accuracy), ("ms", self.ms)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name}: {what} {value}: a finite number is accepted")
