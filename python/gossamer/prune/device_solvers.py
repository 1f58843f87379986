# SPDX-License-Identifier: BSD-3-Clause
"""The solvers as torch operations, for tensors that are not on the CPU.

Registered as the CUDA kernels of `torch.ops.gossamer`. The C++ of `src/prune` and these follow the
same formulas; the tests hold one against the other. Products are full float32, never TF32. On CUDA,
kernels of `_C_cuda.so` select groups and sweep columns. `admm_by` serves the CPU too. Selections
are in `device_select`, swaps in `device_swaps`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from gossamer.prune.device_select import dropped_count, has_kernels, keep_highest, select
from gossamer.prune.device_swaps import swap_refine
from gossamer.prune.pattern import PatternFields, parse_pattern

__all__ = [
    "accumulate_gram",
    "admm",
    "admm_by",
    "missed",
    "obs_sweep",
    "refit",
    "select",
    "swap_refine",
]

_TOKENS_IN_FLOAT, _CHECK_EVERY = 4096, 3
_SWEPT_COLUMNS = 128
"""The most that one call of `obs_sweep_block_` takes."""


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def accumulate_gram(gram: Tensor, x: Tensor, y: Tensor) -> None:
    """See accumulate_gram of include/gossamer/solve.h: gram += xᵀ·y."""
    with _full_float32():
        for a, b in zip(x.split(_TOKENS_IN_FLOAT), y.split(_TOKENS_IN_FLOAT), strict=True):
            gram += a.T @ b


def missed(dense: Tensor, solved: Tensor, rows: Tensor) -> float:
    """‖X·(W − Ŵ)ᵀ‖² / ‖X·Wᵀ‖² over some inputs; 0 where the dense weight gives nothing.

    Args:
        dense: W, [groups, out, in], float32.
        solved: Ŵ, the same.
        rows: X, [groups, tokens, in], float32.
    """
    with _full_float32():
        part, whole = (
            (rows @ weight.mT).double().square().sum() for weight in (dense - solved, dense)
        )
    return float(part / whole) if float(whole) > 0 else 0.0


# --- Solvers --------------------------------------------------------------------------------------


def obs_sweep(
    weight: Tensor, factor: Tensor, mask: Tensor | None, pattern: str, block: int, segment: int
) -> tuple[Tensor, Tensor]:
    """See obs_sweep of include/gossamer/solve.h."""
    weight, cols = weight.clone(memory_format=torch.contiguous_format), weight.shape[1]
    factor = factor.contiguous()  # Cholesky factors come transposed
    kept = torch.zeros_like(weight, dtype=torch.bool)
    if mask is not None:
        kept.copy_(mask)
    fields = None if mask is not None else parse_pattern(pattern)
    if fields is not None and fields.kind in ("block", "vnm"):
        raise ValueError(
            f"the sweep cannot select pattern '{pattern}': unstructured, fanin and N:M are "
            "accepted; select the mask first and pass no pattern"
        )
    grouped = fields if fields is not None and fields.kind == "nm" else None
    segment = segment or cols
    sweep = _sweep_by_kernel if has_kernels(weight) else _sweep_columns
    pivots = factor.diagonal()
    _check_numbers(weight, pivots)
    begin = 0
    with _full_float32():
        while begin < cols:
            end = min(begin + block, cols)
            if grouped is not None:
                end = _whole_groups(begin, cols, min(block, _SWEPT_COLUMNS), segment, grouped)
            elif fields is not None:
                _select_block(weight, pivots, kept, fields, begin, end)
            for first in range(begin, end, _SWEPT_COLUMNS):
                last = min(first + _SWEPT_COLUMNS, end)
                owed = sweep(weight, factor, kept, first, last, grouped, segment)
                if last < cols:
                    weight[:, last:].addmm_(owed, factor[first:last, last:], alpha=-1)
            begin = end
    return weight, kept


def _check_numbers(weight: Tensor, pivots: Tensor) -> None:
    """Refuses what would spread as NaN and infinity over the weight; waits for the device once."""
    positive, finite = (pivots > 0) & pivots.isfinite(), weight.isfinite().all()
    if bool(positive.all() & finite):
        return
    if not bool(positive.all()):
        place = int(positive.logical_not().nonzero()[0])
        raise ValueError(
            f"factor: element {place} of the diagonal is {float(pivots[place]):g}, expected a "
            "positive number; damp the Gram matrix more before it is factored"
        )
    row, col = (int(i) for i in weight.isfinite().logical_not().nonzero()[0])
    raise ValueError(
        f"weight: row {row}, column {col} is {float(weight[row, col]):g}, expected a finite number"
    )


def _whole_groups(begin: int, cols: int, most: int, segment: int, fields: PatternFields) -> int:
    """Where a block ends that has whole groups, and no more than `most` columns or one group."""
    end = _group_end(begin, segment, fields)
    while end < cols and _group_end(end, segment, fields) - begin <= most:
        end = _group_end(end, segment, fields)
    return end


def _group_end(col: int, segment: int, fields: PatternFields) -> int:
    """One past the last column of the group that a column opens."""
    return min(col + fields.m, (col // segment + 1) * segment)


def _sweep_by_kernel(
    weight: Tensor,
    factor: Tensor,
    kept: Tensor,
    begin: int,
    end: int,
    fields: PatternFields | None,
    segment: int,
) -> Tensor:
    """Sweeps columns [begin, end) in place; what they owe to those right of them is returned."""
    n, m = (0, 0) if fields is None else (fields.n, fields.m)
    owed: Tensor = torch.ops.gossamer.obs_sweep_block_(
        weight, factor, kept, begin, end, n, m, segment
    )
    return owed


def _sweep_columns(
    weight: Tensor,
    factor: Tensor,
    kept: Tensor,
    begin: int,
    end: int,
    fields: PatternFields | None,
    segment: int,
) -> Tensor:
    """What `_sweep_by_kernel` does, a column at a time.

    Time goes into starting operations, so that there are few: the columns of the block are rows of
    a copy, and a weight that is kept owes w/∞ = 0.
    """
    columns = weight[:, begin:end].T.contiguous()
    upper = factor[begin:end, begin:end].contiguous()
    pivots = upper.diagonal()[:, None]
    chosen = kept[:, begin:end].T.contiguous()
    owed = torch.empty_like(columns)
    next_group = begin if fields is not None else end
    divisors = pivots.where(chosen.logical_not(), torch.inf)
    side = 0 if fields is None else fields.m
    earlier = torch.ones(side, side, dtype=torch.bool, device=weight.device).tril(-1)[..., None]
    for col in range(begin, end):
        at = col - begin
        if fields is not None and col == next_group:
            next_group = _group_end(col, segment, fields)
            own = slice(at, next_group - begin)
            scores = (columns[own].double() / pivots[own]).square()
            other, mine = scores[None], scores[:, None]
            ties = (other == mine) & earlier[: len(scores), : len(scores)]
            torch.lt(((other > mine) | ties).sum(dim=1), fields.n, out=chosen[own])
            divisors[own] = pivots[own].where(chosen[own].logical_not(), torch.inf)
        torch.div(columns[at], divisors[at], out=owed[at])
        if col + 1 < end:
            columns[at + 1 :].addr_(upper[at, at + 1 :], owed[at], alpha=-1)
    weight[:, begin:end] = columns.where(chosen, 0).T
    kept[:, begin:end] = chosen.T
    return owed.T


def _select_block(
    weight: Tensor, pivots: Tensor, kept: Tensor, fields: PatternFields, begin: int, end: int
) -> None:
    scores = (weight[:, begin:end].double() / pivots[begin:end]).square()
    rows = 1 if fields.kind == "fanin" else len(weight)
    dropped = dropped_count(fields.sparsity, rows * end) - dropped_count(
        fields.sparsity, rows * begin
    )
    flat = scores if fields.kind == "fanin" else scores.reshape(1, -1)
    kept[:, begin:end] = keep_highest(flat, dropped).view(scores.shape)


def refit(
    weight: Tensor, gram: Tensor, target: Tensor, mask: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, int, float]:
    """See refit_on_support of include/gossamer/solve.h."""
    solution = weight.clone()
    scale = 1.0 / gram.diagonal()

    def energy_of(rows: Tensor) -> Tensor:
        return (rows.double().square() * scale).sum(dim=1)

    with _full_float32():
        target = torch.where(mask, target, 0)
        residual = torch.where(mask, target - solution @ gram, 0)
        energy, size = energy_of(residual), energy_of(target)
        goal = tolerance**2 * size
        active = energy > goal
        direction = torch.where(active[:, None], residual * scale, 0)
        made = 0
        while made < iterations and bool(active.any()):
            product = torch.where(mask, direction @ gram, 0)
            curvature = (direction.double() * product).sum(dim=1)
            active &= curvature > 0
            step = torch.where(active, energy / curvature.where(active, torch.ones_like(energy)), 0)
            solution += step.float()[:, None] * direction
            residual -= step.float()[:, None] * product
            now = energy_of(residual)
            keep = torch.where(active, now / energy.where(active, torch.ones_like(energy)), 0)
            energy = now
            active &= energy > goal
            fresh = residual * scale + keep.float()[:, None] * direction
            direction = torch.where(active[:, None], fresh, 0)
            made += 1
    worst = (energy / size.clamp(min=torch.finfo(torch.float64).tiny)).where(size > 0, size)
    return solution, made, float(worst.max().sqrt()) if len(worst) else 0.0


def admm(
    weight: Tensor,
    eigenvectors: Tensor,
    eigenvalues: Tensor,
    pattern: str,
    scope: str,
    iterations: int,
    penalty: float,
    segment: int,
) -> tuple[Tensor, Tensor, int, float, bool]:
    """See admm of include/gossamer/solve.h."""
    by = partial(select, pattern=pattern, scope=scope, segment=segment)
    return admm_by(by, weight, eigenvectors, eigenvalues, iterations, penalty)


def admm_by(
    choose: Callable[[Tensor], Tensor],
    weight: Tensor,
    eigenvectors: Tensor,
    eigenvalues: Tensor,
    iterations: int,
    penalty: float,
) -> tuple[Tensor, Tensor, int, float, bool]:
    """`admm` with any projection: `choose` gives the mask of some scores, [out, in]."""
    values, rho = eigenvalues.flatten(), penalty
    with _full_float32():
        pull = (weight @ eigenvectors * values) @ eigenvectors.T
        sparse, price = weight.clone(), torch.zeros_like(weight)
        mask = last = choose(weight.double().square())
        is_first, settled, made = True, False, 0
        while made < iterations and not settled:
            rotated = (pull - price + rho * sparse) @ eigenvectors
            free = (rotated / (values + rho)) @ eigenvectors.T
            wanted = free + price / rho
            mask = choose(wanted.square())
            sparse = torch.where(mask, wanted, 0)
            price += rho * (free - sparse)
            made += 1
            if made % _CHECK_EVERY:
                continue
            moved, kept = int((mask != last).sum()), max(int(mask.sum()), 1)
            settled = moved == 0 and not is_first
            if moved:
                share = moved / kept
                rho *= 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1
            elif is_first:
                rho /= 5
            is_first = is_first and moved == 0 and rho > 1e-4
            last = mask
    return sparse, mask, made, rho, settled


def _transposable_mask(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    mask: Tensor = torch.ops.gossamer.transposable_mask(scores.cpu(), n, m)
    return mask.to(scores.device)


if not hasattr(torch.ops.gossamer, "obs_sweep_block_"):  # without _C_cuda.so
    torch.library.register_kernel("gossamer::transposable_mask", "cuda", _transposable_mask)
for _name, _kernel in (
    ("gram_", accumulate_gram),
    ("obs_sweep", obs_sweep),
    ("refit", refit),
    ("admm", admm),
    ("swap_refine", swap_refine),
):
    torch.library.register_kernel(f"gossamer::{_name}", "cuda", _kernel)
