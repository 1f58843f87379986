# SPDX-License-Identifier: BSD-3-Clause
"""Masks that are N:M along both dimensions: exact for 2:4, near the best for larger tiles."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import gossamer  # noqa: F401  (registers the operators)
from isa_helpers import assert_all_levels_print_one_hash

ops = torch.ops.gossamer

TRANSPOSABLE = [
    torch.tensor(rows)
    for rows in itertools.product(
        [p for p in itertools.product([False, True], repeat=4) if sum(p) == 2], repeat=4
    )
    if all(sum(column) == 2 for column in zip(*rows, strict=True))
]


@pytest.mark.parametrize("integers", [False, True])
def test_transposable_masks_are_the_best_of_ninety(integers: bool) -> None:
    assert len(TRANSPOSABLE) == 90
    scores = torch.randint(-3, 9, (64, 64)).float() if integers else torch.randn(64, 64).abs()
    got = ops.transposable_mask(scores)
    for r, c in itertools.product(range(0, 64, 4), repeat=2):
        tile, kept = scores[r : r + 4, c : c + 4], got[r : r + 4, c : c + 4]
        assert (kept.sum(dim=0) == 2).all()
        assert (kept.sum(dim=1) == 2).all()
        best = max(float(tile[pattern].double().sum()) for pattern in TRANSPOSABLE)
        # Sums of eight float32 numbers in another order.
        assert float(tile[kept].double().sum()) >= best * (1 - 8 * 2.0**-24)


@pytest.mark.parametrize("sizes", [(2, 4), (1, 2), (4, 8), (3, 8), (16, 32)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (6, 9), (2, 7, 6), (0, 4), (34, 70)])
def test_transposable_masks_past_the_edge(shape: tuple[int, ...], sizes: tuple[int, int]) -> None:
    n, m = sizes
    scores = torch.rand(shape)
    mask = ops.transposable_mask(scores, n, m)
    assert mask.shape == scores.shape
    for one in mask if mask.dim() == 3 else [mask]:
        assert ops.find_violation(one.contiguous(), f"{n}:{m}") == ""
        assert ops.find_violation(one.T.contiguous(), f"{n}:{m}") == ""
    if scores.numel() == 1:
        assert mask.all()


def best_tile(tile: Tensor, n: int) -> float:
    """The highest sum that any mask keeps, by linear programming: its corners are masks."""
    from scipy.optimize import linprog

    m = len(tile)
    sums = torch.zeros(2 * m, m * m)
    for i in range(m):
        sums[i, i * m : (i + 1) * m] = 1
        sums[m + i, i::m] = 1
    goal = linprog(
        -tile.double().flatten().numpy(), A_eq=sums.numpy(), b_eq=[n] * (2 * m), bounds=(0, 1)
    )
    return float(-goal.fun)


@pytest.mark.parametrize(
    ("n", "m", "least"),
    [(4, 8, 0.9985), (2, 8, 0.996), (8, 16, 0.9980), (1, 4, 0.998), (3, 4, 0.999)],
)
def test_larger_transposable_masks_are_near_the_best(n: int, m: int, least: float) -> None:
    scores = torch.randn(4 * m, 4 * m).abs()
    mask = ops.transposable_mask(scores, n, m)
    kept = best = 0.0
    for r, c in itertools.product(range(0, 4 * m, m), repeat=2):
        tile, own = scores[r : r + m, c : c + m], mask[r : r + m, c : c + m]
        assert (own.sum(dim=0) == n).all()
        assert (own.sum(dim=1) == n).all()
        kept += float(tile[own].double().sum())
        best += best_tile(tile, n)
    assert least * best <= kept <= best * (1 + 1e-6)


@pytest.mark.parametrize("sizes", [(2, 4), (4, 8), (8, 16)])
def test_transposable_masks_fill_every_tile(sizes: tuple[int, int]) -> None:
    n, m = sizes
    for scores in (
        torch.zeros(m * 8, m * 8),
        torch.randint(0, 3, (m * 8, m * 8)).float(),
        -torch.rand(m * 8, m * 8),
        torch.rand(m * 8, m * 8) ** 40,
        (torch.rand(m * 8, m * 8) * 60 - 30).exp(),
    ):
        mask = ops.transposable_mask(scores, n, m)
        for dim in (0, 1):
            counts = mask.unflatten(dim, (-1, m)).sum(dim=dim + 1)
            assert (counts == n).all()
        assert torch.equal(mask, ops.transposable_mask(scores.double(), n, m))


def test_transposable_masks_refuse_what_they_cannot_order() -> None:
    for value in (float("nan"), float("inf")):
        scores = torch.rand(3, 8, 8)
        scores[1, 2, 7] = value
        for n, m in ((2, 4), (4, 8)):
            with pytest.raises(ValueError, match=f"transposable {n}:{m}: row 10 has a score"):
                ops.transposable_mask(scores, n, m)
    with pytest.raises(ValueError, match="one of 2, 4, 8, 16, 32"):
        ops.transposable_mask(torch.rand(6, 6), 2, 6)


_HASH = """
import hashlib, torch, gossamer
torch.manual_seed(0)
found = hashlib.sha256()
for shape in ((64, 640), (8, 12), (3, 5, 9), (7, 33)):
    for scores in (torch.randn(shape), torch.randint(-2, 3, shape).float()):
        for one in (scores, scores.double(), scores.mT):
            mask = torch.ops.gossamer.transposable_mask(one)
            found.update(mask.contiguous().numpy().tobytes())
print(found.hexdigest())
"""


def test_all_instruction_sets_find_the_same_masks() -> None:
    assert_all_levels_print_one_hash(_HASH)


@pytest.mark.parametrize("pattern", ["3:6", "5:4", "2:64", "0:4", "-1:4", "2:4:8", "x"])
def test_transposable_refuses_other_patterns(pattern: str) -> None:
    from gossamer.prune import Transposable

    with pytest.raises(ValueError, match="'N:M' with 1 <= N <= M"):
        Transposable(pattern)


def test_larger_transposable_patterns_prune_layers() -> None:
    from gossamer.prune import Magnitude, Transposable

    model = torch.nn.Sequential(torch.nn.Linear(32, 48))
    sparsifier = Magnitude(Transposable("4:8"))
    sparsifier.prepare(model)
    sparsifier.step()
    sparsifier.squash_mask()
    weight = model[0].weight.detach()
    for matrix in (weight, weight.T.contiguous()):
        assert ops.find_violation(matrix, "4:8") == ""
    assert (weight == 0).float().mean() == 0.5


def test_transposable_is_a_pattern_of_any_method() -> None:
    from gossamer.prune import ALPS, Best, Magnitude, SparseGPT, Transposable, Wanda

    for method in (Magnitude, Wanda, SparseGPT, ALPS, Best):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(6, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 12)
        )
        sparsifier = method(Transposable())
        sparsifier.prepare(model)
        if isinstance(sparsifier, Magnitude):
            sparsifier.step()
        else:
            sparsifier.calibrate([torch.randn(16, 6, 6, 6)])
        sparsifier.squash_mask()
        taps = model[0].weight.detach().permute(2, 3, 0, 1).flatten(0, 1)
        for matrix in [*taps, model[2].weight.detach()]:
            assert ops.find_violation(matrix.contiguous(), "2:4") == ""
            assert ops.find_violation(matrix.T.contiguous(), "2:4") == ""
        assert (model[2].weight == 0).float().mean() == 0.5


def test_admm_finds_better_transposable_weights_than_a_score() -> None:
    from gossamer.prune import ALPS, ByObs, LeastSquares, OneShot, SparseGPT, Transposable

    torch.manual_seed(0)
    x = torch.randn(2048, 64) @ (torch.eye(64) + 0.3 * torch.randn(64, 64))
    errors = []
    for make in (SparseGPT, lambda p: OneShot(p, ByObs(), LeastSquares()), ALPS):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(64, 48))
        sparsifier = make(Transposable())
        sparsifier.prepare(model)
        errors.append(sparsifier.calibrate([x]).mean_error)
    assert errors == sorted(errors, reverse=True), errors
