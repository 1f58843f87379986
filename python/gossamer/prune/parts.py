# SPDX-License-Identifier: BSD-3-Clause
"""The parts that one-shot methods are made of.

A part is called with a `LayerProblem` and writes its `mask`, its `solution`, or both. Scores select
a mask, `Swap` improves one, updates correct the weights that are kept:

    OneShot("2:4", ByWanda(), Swap(), LeastSquares())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from gossamer.prune import device_solvers
from gossamer.prune.chance import random_scores
from gossamer.prune.pattern import CustomPattern, column_block, parse_pattern
from gossamer.prune.problem import LayerProblem

__all__ = [
    "Admm",
    "ByMagnitude",
    "ByObs",
    "ByRIA",
    "ByRandom",
    "ByWanda",
    "LeastSquares",
    "ObsSweep",
    "Part",
    "Score",
    "Swap",
]

Part: TypeAlias = Callable[[LayerProblem], None]
"""Anything that is called with a layer's problem and writes what it found."""


class Score:
    """Selects a mask: what scores highest inside the pattern's scope is kept.

    A subclass that defines `score` is complete.

    Attributes:
        needs_gram: whether it reads more of a problem's inputs than `norms`. Where no part of a
            method does, calibration gathers no Gram matrix of wide layers.
    """

    needs_gram: ClassVar[bool] = True

    def score(self, problem: LayerProblem) -> Tensor:
        """How much each weight is worth keeping: [groups, out, in], no NaN."""
        raise NotImplementedError(f"{type(self).__name__} defines no score(problem)")

    def __call__(self, problem: LayerProblem) -> None:
        """Writes the problem's mask."""
        problem.mask = problem.select(self.score(problem))
        problem.solution = None


@dataclass(frozen=True)
class ByMagnitude(Score):
    """|w|."""

    needs_gram: ClassVar[bool] = False

    def score(self, problem: LayerProblem) -> Tensor:
        """|w|."""
        return problem.weight.abs()


@dataclass(frozen=True)
class ByRandom(Score):
    """Chance: the same for a layer's name in each run. A floor that other scores have to beat.

    Attributes:
        seed: any integer.
    """

    needs_gram: ClassVar[bool] = False
    seed: int = 0

    def score(self, problem: LayerProblem) -> Tensor:
        """Uniform in [0, 1)."""
        return random_scores(problem.fqn, self.seed, 0, problem.weight.shape).to(
            problem.weight.device
        )


@dataclass(frozen=True)
class ByWanda(Score):
    """|w|·‖x_j‖₂ (Sun et al. 2023, arXiv:2306.11695, equation 1)."""

    needs_gram: ClassVar[bool] = False

    def score(self, problem: LayerProblem) -> Tensor:
        """|w|·‖x_j‖₂."""
        return problem.weight.abs() * problem.norms


@dataclass(frozen=True)
class ByRIA(Score):
    """Relative importance and activations (Zhang et al. 2024, ICLR, "Plug-and-play", equation 3).

    (|w| / Σ_column |w| + |w| / Σ_row |w|)·‖x_j‖₂^power.

    Attributes:
        power: how much the activations count.
    """

    needs_gram: ClassVar[bool] = False
    power: float = 0.5

    def score(self, problem: LayerProblem) -> Tensor:
        """The relative importance, float64: sums come out the same in whichever order."""
        size = problem.weight.abs().double()
        smallest = torch.finfo(size.dtype).tiny  # An empty row or column scores 0, not NaN.
        rows = size / size.sum(dim=-1, keepdim=True).clamp(min=smallest)
        cols = size / size.sum(dim=-2, keepdim=True).clamp(min=smallest)
        return (rows + cols) * problem.norms.double() ** self.power


@dataclass(frozen=True)
class ByObs(Score):
    """w² / [H⁻¹]_jj: the loss when one weight is dropped and the others follow."""

    def score(self, problem: LayerProblem) -> Tensor:
        """The saliency of optimal brain surgeon (Hassibi & Stork 1992)."""
        inverse_diagonal = problem.factor().square().sum(dim=-2)[:, None]
        return problem.weight.square() / inverse_diagonal.float()


@dataclass(frozen=True)
class Swap:
    """Swaps kept and dropped weights while that lowers the layer's loss, weights unchanged.

    The 1-swap local search of SparseSwaps (arXiv:2512.10922). Counts of rows (of groups, for N:M)
    stay as they are.

    Attributes:
        max_swaps: at most so many in a row; 0 for no limit.
    """

    max_swaps: int = 0

    def check(self, pattern: str | CustomPattern) -> None:
        """Refuses a pattern that swaps would break; `OneShot` asks before anything is run."""
        kind = parse_pattern(pattern).kind if isinstance(pattern, str) else ""
        if kind not in ("unstructured", "nm", "fanin"):
            raise ValueError(
                "Swap: swaps keep unstructured, fanin and N:M patterns; "
                f"'{pattern}' would be broken: leave Swap out"
            )

    def __call__(self, problem: LayerProblem) -> None:
        """Improves the problem's mask."""
        self.check(problem.pattern)
        mask, fields = _mask_of(problem, "Swap"), problem.fields
        assert fields is not None
        swaps = 0
        for group, own in enumerate(mask):
            better, made = torch.ops.gossamer.swap_refine(
                problem.weight[group],
                problem.gram[group].float(),
                own,
                fields.m if fields.grouped else 0,
                problem.segment if fields.grouped else 0,
                self.max_swaps,
            )
            own.copy_(better)
            swaps += made
        problem.notes["swaps"] = swaps
        problem.solution = None


@dataclass(frozen=True)
class ObsSweep:
    """The column sweep of SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774).

    Corrects the weights right of each one that is dropped. Where no part before it selected a mask,
    it selects one on its way, with the weights as they are by then: over all rows of `block`
    columns with scope "tensor" (of N with "columns:N"), in each row of them with scope "row".

    Attributes:
        block: columns that are selected together.
    """

    block: int = 128

    def __call__(self, problem: LayerProblem) -> None:
        """Writes mask and solution."""
        fields = problem.fields
        if problem.mask is None and (fields is None or fields.kind in ("block", "vnm")):
            ByObs()(problem)
        pattern = str(problem.pattern)
        if fields is not None and fields.kind == "unstructured" and problem.scope == "row":
            pattern = f"fanin:{fields.sparsity}"
        factor = problem.factor().float()

        def sweep(group: int) -> tuple[Tensor, Tensor]:
            mask = None if problem.mask is None else problem.mask[group]
            result: tuple[Tensor, Tensor] = torch.ops.gossamer.obs_sweep(
                problem.weight[group],
                factor[group],
                mask,
                "" if mask is not None else pattern,
                column_block(problem.scope) or self.block,
                problem.segment,
            )
            return result

        _write(problem, problem.each(sweep))


@dataclass(frozen=True)
class Admm:
    """Mask and weights together by ADMM, with the penalty's schedule of ALPS.

    Meng et al. 2024, arXiv:2406.07831. `LeastSquares` after it makes the weights exact.

    Attributes:
        iterations: at most so many; it ends where the mask stands still.
        penalty: ρ at the start.
    """

    iterations: int = 300
    penalty: float = 0.1

    def check(self, scope: str) -> None:
        """Refuses a scope that ADMM cannot select in; `OneShot` asks before anything is run."""
        if column_block(scope):
            raise ValueError(f"Admm: scope {scope!r}: 'row' or 'tensor' is accepted")

    def __call__(self, problem: LayerProblem) -> None:
        """Writes mask and solution."""
        self.check(problem.scope)
        scale, values, vectors = problem.eigen()
        scaled = (problem.weight / scale).float()
        iterations = 0

        def solve(group: int) -> tuple[Tensor, Tensor]:
            nonlocal iterations
            weight, of = scaled[group], vectors[group].float()
            spectrum = values[group, None].float()
            limits = (self.iterations, self.penalty)
            if isinstance(problem.pattern, str):
                solved = torch.ops.gossamer.admm(
                    weight, of, spectrum, problem.pattern, problem.scope, *limits, problem.segment
                )
            else:
                solved = device_solvers.admm_by(
                    partial(problem.select_one, group), weight, of, spectrum, *limits
                )
            iterations += solved[2]
            return solved[0], solved[1]

        _write(problem, problem.each(solve))
        assert problem.solution is not None
        problem.solution = (problem.solution * scale).float()
        problem.notes["admm_iterations"] = iterations


@dataclass(frozen=True)
class LeastSquares:
    """The best weights on the mask: least squares by conjugate gradients, all rows at once.

    Attributes:
        iterations: at most so many.
        tolerance: a row is done when its residual is so small against its target.
    """

    iterations: int = 50
    tolerance: float = 1e-4

    def __call__(self, problem: LayerProblem) -> None:
        """Writes the solution."""
        mask = _mask_of(problem, "LeastSquares")
        problem.fit_damping()
        gram, target = problem.damped.float(), problem.target().float()
        start = problem.kept_weight
        worst = 0.0

        def fit(group: int) -> tuple[Tensor, Tensor]:
            nonlocal worst
            weight, _, residual = torch.ops.gossamer.refit(
                start[group],
                gram[group],
                target[group],
                mask[group],
                self.iterations,
                self.tolerance,
            )
            worst = max(worst, residual)
            return weight, mask[group]

        _write(problem, problem.each(fit))
        problem.notes["residual"] = worst


def _mask_of(problem: LayerProblem, part: str) -> Tensor:
    if problem.mask is None:
        raise ValueError(
            f"{part}, '{problem.fqn}': no part before it selected a mask; put a score such as "
            "ByWanda(), or Admm(), before it"
        )
    return problem.mask


def _write(problem: LayerProblem, solved: list[tuple[Tensor, Tensor]]) -> None:
    problem.solution = torch.stack([weight for weight, _ in solved])
    problem.mask = torch.stack([mask for _, mask in solved])
