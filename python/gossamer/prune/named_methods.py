# SPDX-License-Identifier: BSD-3-Clause
"""One-shot methods that have a name: choices of parts, scope and target."""

from __future__ import annotations

from gossamer.prune.one_shot import OneShot
from gossamer.prune.parts import Admm, ByRIA, ByWanda, LeastSquares, ObsSweep
from gossamer.prune.pattern import CustomPattern
from gossamer.prune.reconstruction import Reconstruction

__all__ = ["ALPS", "RIA", "Best", "SparseGPT", "Wanda"]

_DEFAULT_RECONSTRUCTION = Reconstruction()


class Wanda(OneShot):
    """Weights times norms of inputs, by row; no weight changes (arXiv:2306.11695).

    Args:
        pattern: as for `Sparsifier`.
        scope: "row" as in the paper; "tensor" is better for convolutions.
        target: as for `OneShot`.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        scope: str = "row",
        target: str = "sparse-inputs",
    ) -> None:
        super().__init__(pattern, ByWanda(), scope=scope, target=target)


class RIA(OneShot):
    """Relative importance times norms of inputs; no weight changes (Zhang et al. 2024, ICLR).

    Args:
        pattern: as for `Sparsifier`.
        power: how much the norms count.
        scope: as for `OneShot`.
        target: as for `OneShot`.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        power: float = 0.5,
        scope: str = "row",
        target: str = "sparse-inputs",
    ) -> None:
        super().__init__(pattern, ByRIA(power), scope=scope, target=target)


class SparseGPT(OneShot):
    """Masks and corrections in one sweep over the columns (arXiv:2301.00774).

    Args:
        pattern: as for `Sparsifier`.
        block: columns that are selected together.
        scope: "tensor": weights of a block of columns compete over all rows, as in the paper;
            "row": in each row.
        target: as for `OneShot`.
        damping: as for `OneShot`.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        block: int = 128,
        scope: str = "tensor",
        target: str = "sparse-inputs",
        damping: float = 0.01,
    ) -> None:
        super().__init__(pattern, ObsSweep(block), scope=scope, target=target, damping=damping)


class ALPS(OneShot):
    """ADMM for the mask, then least squares on it (arXiv:2406.07831).

    Args:
        pattern: as for `OneShot`.
        iterations: of ADMM, at most.
        scope: as for `OneShot`.
        target: as for `OneShot`.
        damping: as for `OneShot`.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        iterations: int = 300,
        scope: str = "tensor",
        target: str = "sparse-inputs",
        damping: float = 0.01,
    ) -> None:
        parts = (Admm(iterations), LeastSquares())
        super().__init__(pattern, *parts, scope=scope, target=target, damping=damping)


class Best(OneShot):
    """What measures best: ALPS that reproduces the dense model's outputs, then each block tuned.

    Args:
        pattern: as for `OneShot`.
        scope: as for `OneShot`.
        damping: as for `OneShot`.
        reconstruction: as for `OneShot`.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        scope: str = "tensor",
        damping: float = 0.01,
        reconstruction: Reconstruction | None = _DEFAULT_RECONSTRUCTION,
    ) -> None:
        super().__init__(
            pattern,
            Admm(),
            LeastSquares(),
            scope=scope,
            target="dense-target",
            damping=damping,
            held_out_correction=True,
            reconstruction=reconstruction,
        )
