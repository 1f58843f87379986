# SPDX-License-Identifier: BSD-3-Clause
"""What a one-shot method is asked for one layer, and what its parts have answered so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from gossamer.prune import device_select, device_solvers
from gossamer.prune.correction import Fold, mean_diagonal
from gossamer.prune.pattern import (
    CustomPattern,
    PatternFields,
    column_block,
    is_grouped,
    parse_pattern,
    read_pattern,
)

__all__ = ["LayerProblem"]

_MOST_DAMPING = 1.0

_T = TypeVar("_T")


class _Gram:
    """The Gram matrix of a problem; whoever asks for one that was not gathered hears why."""

    def __get__(self, problem: LayerProblem | None, owner: type) -> Tensor:
        if problem is None:
            raise AttributeError("gram")
        gram: Tensor | None = problem.__dict__["gram"]
        if gram is None:
            raise ValueError(
                f"'{problem.fqn}': only the norms of its inputs were gathered, since all parts say "
                "needs_gram = False; set it to True on the part that reads the Gram matrix"
            )
        return gram

    def __set__(self, problem: LayerProblem, gram: Tensor | None) -> None:
        problem.__dict__["gram"] = gram


@dataclass
class LayerProblem:
    """One layer: min ‖T − Ŵ·X‖² over Ŵ that have the pattern, X the layer's inputs.

    T is W·X, or W·X₀ where X₀ are the inputs of the same layer in the dense model. Matrices are
    [groups, out, in] and [groups, in, in] (groups is 1 but for grouped convolutions), on the
    weight's device. Gram matrices are means over tokens.

    Attributes:
        fqn: the weight's full name.
        dense: W, float32.
        gram: G = XᵀX / tokens, float64. None, which reading it refuses, where `squares` and
            `sample` are all that is known.
        cross: C = X₀ᵀX / tokens, float64; None where T is W·X.
        pattern: a pattern's text, or an object with `select`.
        scope: "row", "tensor" or "columns:N".
        segment: patterns that group neighbouring inputs start anew after so many.
        tokens: how many rows the means are over.
        weight: what is to be reproduced on X: W, or what `correct` made of it; float32.
        mask: bool, what is kept; None until a part selected it.
        solution: the weight that a part corrected, zero where dropped; None until one did.
        damping: δ as a fraction of the mean of diag(G); parts that factor G may have raised it.
        correction: the same for `correct`, infinite for none; None takes δ.
        notes: what parts report, such as {"swaps": 17}.
        squares: diag(G), [groups, in], float64, where G is not gathered.
        sample: some rows of X, [groups, tokens, in], float32, where G is not gathered.
        present: bool, the mask before calibration; None where nothing had selected one.
        gradient: ∂L/∂W that `backward` left, [groups, out, in], float32; None where there is none.
    """

    fqn: str
    dense: Tensor
    gram: Tensor
    pattern: str | CustomPattern
    scope: str = "row"
    segment: int = 0
    cross: Tensor | None = None
    tokens: int = 0
    damping: float = 0.01
    correction: float | None = None
    mask: Tensor | None = None
    solution: Tensor | None = None
    notes: dict[str, float] = field(default_factory=dict)
    squares: Tensor | None = None
    sample: Tensor | None = None
    present: Tensor | None = None
    gradient: Tensor | None = None

    def __post_init__(self) -> None:
        self.pattern = read_pattern(self.pattern)
        self.weight = self.dense
        self.segment = self.segment or self.dense.shape[-1]

    def __repr__(self) -> str:
        shape = list(self.dense.shape)
        return f"LayerProblem({self.fqn!r}, {shape}, {self.pattern}, scope={self.scope!r})"

    # --- What parts read --------------------------------------------------------------------------

    @property
    def fields(self) -> PatternFields | None:
        """The pattern's fields; None for an object."""
        return parse_pattern(self.pattern) if isinstance(self.pattern, str) else None

    @property
    def norms(self) -> Tensor:
        """‖X_j‖₂/√tokens of each input, [groups, 1, in], float32."""
        return self.energies.clamp(min=0).sqrt().float()[:, None]

    @property
    def energies(self) -> Tensor:
        """‖X_j‖²/tokens of each input, [groups, in], float64: the diagonal of G."""
        return self.gram.diagonal(dim1=-2, dim2=-1) if self.squares is None else self.squares

    @property
    def kept_weight(self) -> Tensor:
        """The weight as solved so far: the solution, else the masked weight, else the weight."""
        if self.solution is not None:
            return self.solution
        return self.weight if self.mask is None else torch.where(self.mask, self.weight, 0)

    @property
    def damped(self) -> Tensor:
        """H = G + δI, float64."""
        return self.gram + self._ridge()

    def target(self) -> Tensor:
        """T·Xᵀ with the damping that makes it W·H for T = W·X: [groups, out, in], float64."""
        if self.cross is not None and self.correction is not None:
            return self.weight.double() @ self.damped
        against = self.gram if self.cross is None else self.cross
        return self.dense.double() @ (against + self._ridge())

    def select(self, scores: Tensor, pattern: str | CustomPattern | None = None) -> Tensor:
        """The mask that the pattern keeps of some scores, both [groups, out, in].

        Raises:
            ValueError: a score is NaN, there is not one for each weight, or an object is to select
                in blocks of columns.
        """
        pattern = self.pattern if pattern is None else pattern
        if scores.shape != self.dense.shape:
            raise ValueError(
                f"the scores of '{self.fqn}' are {list(scores.shape)}: one score for each weight, "
                f"{list(self.dense.shape)}, is accepted"
            )
        grouped = is_grouped(pattern)
        width = 0 if grouped else column_block(self.scope)
        if width and not isinstance(pattern, str):
            raise ValueError(
                f"'{self.fqn}': scope {self.scope!r}: pattern {pattern} is an object, which "
                "selects from the whole weight; 'row' or 'tensor' is accepted"
            )
        if width:
            parts = scores.split(width, dim=-1)
            return torch.cat([self._select(part, pattern, "tensor") for part in parts], dim=-1)
        return self._select(scores, pattern, "tensor" if column_block(self.scope) else self.scope)

    def _select(self, scores: Tensor, pattern: str | CustomPattern, scope: str) -> Tensor:
        grouped = is_grouped(pattern)
        groups, rows, cols = scores.shape
        if isinstance(pattern, str) and not scores.is_cpu and device_select.selects(pattern):
            device_select.check_scores(self.fqn, scores)
            segment = self.segment if grouped else 0
            return device_select.select(scores.detach(), pattern, scope, segment)
        flat = scores.detach()
        if grouped:
            flat = self._in_segments(flat)
        device = scores.device if getattr(pattern, "any_device", False) else "cpu"
        flat = flat.to(device, torch.float64 if scores.dtype == torch.float64 else torch.float32)
        if isinstance(pattern, str):
            try:
                mask = torch.ops.gossamer.select_masks([flat.contiguous()], pattern, scope)[0]
            except (ValueError, RuntimeError) as error:
                raise ValueError(str(error).replace("selection 0:", f"'{self.fqn}':")) from None
        else:
            mask = pattern.select(flat if len(flat) > 1 else flat[0]).view(flat.shape)
        if grouped:
            mask = mask.view(groups, -1, rows, self.segment).transpose(1, 2)
        return mask.reshape(groups, rows, cols).to(scores.device)

    def select_one(self, group: int, scores: Tensor) -> Tensor:
        """`select` for one of the layer's matrices; scores and mask [out, in]."""
        own = slice(group, group + 1)
        return replace(self, dense=self.dense[own], gram=self.gram[own]).select(scores[None])[0]

    def each(self, solve: Callable[[int], _T]) -> list[_T]:
        """Calls a solver for each of the layer's matrices."""
        return [solve(group) for group in range(len(self.dense))]

    def fitted_to(self, fold: Fold) -> Tensor:
        """Least squares on this problem's mask with the inputs of one fold: [groups, out, in].

        Whatever made the solution, it is what it would be near without the other inputs.
        """
        assert self.mask is not None
        mask = self.mask
        ratio = self.tokens / fold.tokens
        half = replace(
            self,
            gram=fold.gram / fold.tokens,
            cross=None if fold.cross is None else fold.cross / fold.tokens,
            correction=None if self.correction is None else self.correction * ratio,
            tokens=fold.tokens,
            mask=None,
            solution=None,
            notes={},
        )
        half.correct()
        half.fit_damping()
        start = torch.where(mask, half.weight, 0)
        gram, target = half.damped.float(), half.target().float()

        def fit(group: int) -> Tensor:
            found: Tensor = torch.ops.gossamer.refit(
                start[group], gram[group], target[group], mask[group], 50, 1e-4
            )[0]
            return found

        return torch.stack(self.each(fit))

    # --- Factors of H -----------------------------------------------------------------------------

    def factor(self) -> Tensor:
        """U upper triangular with UᵀU = H⁻¹, [groups, in, in], float64; raises δ until it exists.

        With A upper triangular and H = A·Aᵀ (a Cholesky factor read from the last row up),
        U = A⁻¹: one factorisation and one triangular inverse.
        """
        lower = self._cholesky(flipped=True)
        upper = lower.flip(-2, -1)
        identity = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
        return torch.linalg.solve_triangular(upper, identity.expand_as(upper), upper=True)

    def eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """H with a unit diagonal as Q·Λ·Qᵀ; raises δ until all of Λ is above 0.

        Returns:
            What rows and columns were multiplied by, [groups, 1, in]; Λ [groups, in]; Q
            [groups, in, in]; float64.
        """
        asked = self.damping
        while True:
            damped = self.damped
            diagonal = damped.diagonal(dim1=-2, dim2=-1)
            if bool((diagonal > 0).all()):
                scale = diagonal.rsqrt()[:, None]
                values, vectors = torch.linalg.eigh(damped * scale * scale.mT)
                if bool((values > 0).all()):
                    return scale, values, vectors
            self._raise_damping(asked)

    def fit_damping(self) -> None:
        """Raises δ until the diagonal of H is above 0, which conjugate gradients need."""
        asked, mean = self.damping, mean_diagonal(self.gram)[:, None]
        while not bool((self.energies + self.damping * mean > 0).all()):
            self._raise_damping(asked)

    def correct(self) -> None:
        """Replaces the weight by the dense one that gives T best on X: W·(C + δI)·(G + δI)⁻¹."""
        if self.cross is None or self.correction == math.inf:
            return
        asked = self.damping
        self.damping = asked if self.correction is None else max(asked, self.correction)
        lower = self._cholesky(flipped=False)
        against = self.dense.double() @ (self.cross + self._ridge())
        self.weight = torch.cholesky_solve(against.mT, lower).mT.float()
        if self.correction is not None:
            self.damping = asked

    def _ridge(self) -> Tensor:
        size = self.gram.shape[-1]
        identity = torch.eye(size, dtype=self.gram.dtype, device=self.gram.device)
        return self.damping * mean_diagonal(self.gram)[:, None, None] * identity

    def _cholesky(self, *, flipped: bool) -> Tensor:
        """The lower Cholesky factor of H, or of H with rows and columns in reverse."""
        asked = self.damping
        while True:
            matrix = self.damped.flip(-2, -1) if flipped else self.damped
            lower, failed = torch.linalg.cholesky_ex(matrix)
            if not bool(failed.any()):
                return lower
            self._raise_damping(asked)

    def _raise_damping(self, asked: float) -> None:
        """Tenfold.

        Args:
            asked: where it began.

        Raises:
            ValueError: it is as high as it may be.
        """
        if self.damping * 10 > _MOST_DAMPING:
            raise ValueError(
                f"'{self.fqn}': the Gram matrix of its inputs is not positive definite, with a "
                f"damping from {asked:g} up to {self.damping:g} of its mean diagonal. "
                f"It saw {self.tokens} tokens for {self.gram.shape[-1]} inputs; calibrate with "
                "more data, or leave the layer dense (config={'<name>': None})"
            )
        self.damping = max(self.damping * 10, 1e-6)

    # --- What came out ----------------------------------------------------------------------------

    def check(self, *, verify: bool) -> None:
        """Refuses what parts wrote and no layer can take; a solution is zero where dropped.

        Args:
            verify: whether the mask is held against the pattern, where that is N:M, vnm or fanin.

        Raises:
            ValueError: there is no mask, a mask or a solution is of another shape or dtype, or the
                mask keeps what the pattern drops.
        """
        if self.mask is None:
            raise ValueError(f"'{self.fqn}': none of the parts selected a mask")
        shape = self.dense.shape
        for name, found in (("mask", self.mask), ("solution", self.solution)):
            dtype = torch.bool if name == "mask" else torch.float32
            if found is not None and (found.shape != shape or found.dtype != dtype):
                raise ValueError(
                    f"'{self.fqn}': a part wrote a {name} of {found.dtype} {list(found.shape)}: "
                    f"{dtype} {list(shape)} is accepted"
                )
        if self.solution is not None:
            self.solution = torch.where(self.mask, self.solution, 0)
        fields = self.fields
        # How many zeros others have depends on the scope, and on how a share of a row is rounded.
        if not verify or fields is None or fields.kind not in ("nm", "vnm", "fanin"):
            return
        kept = self.mask.cpu().float()
        kept = self._in_segments(kept) if fields.grouped else kept
        fault = torch.ops.gossamer.find_violation(kept.contiguous(), fields.text)
        if fault:
            raise ValueError(
                f"'{self.fqn}': the mask that a part wrote breaks its pattern: {fault}"
            )

    def _in_segments(self, matrices: Tensor) -> Tensor:
        """[groups, out, in] as a matrix for each segment, so that no group crosses to the next."""
        groups, rows, _ = matrices.shape
        parts = matrices.reshape(groups, rows, -1, self.segment)
        return parts.transpose(1, 2).flatten(0, 1)

    def error(self, weight: Tensor | None = None) -> float:
        """‖(W − Ŵ)·X‖² / ‖W·X‖², over the rows of `sample` where there is no Gram matrix."""
        solved = self.kept_weight if weight is None else weight
        if self.sample is not None:
            return device_solvers.missed(self.dense, solved, self.sample)
        delta = solved.double() - self.dense
        return _ratio(_energy(delta, self.gram), _energy(self.dense.double(), self.gram))

    def target_error(self, dense_gram: Tensor) -> float:
        """‖W·X₀ − Ŵ·X‖² / ‖W·X₀‖².

        Args:
            dense_gram: X₀ᵀX₀ / tokens, [groups, in, in].
        """
        assert self.cross is not None
        dense, solved = self.dense.double(), self.kept_weight.double()
        whole = _energy(dense, dense_gram)
        shared = ((dense @ self.cross) * solved).sum()
        return _ratio(whole - 2 * shared + _energy(solved, self.gram), whole)


LayerProblem.gram = _Gram()  # type: ignore[assignment]


def _energy(weight: Tensor, gram: Tensor) -> Tensor:
    return ((weight @ gram) * weight).sum()


def _ratio(part: Tensor, whole: Tensor) -> float:
    # Rounding may take a part that is next to nothing below it.
    return max(float(part / whole), 0.0) if float(whole) > 0 else 0.0
