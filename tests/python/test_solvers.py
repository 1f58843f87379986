# SPDX-License-Identifier: BSD-3-Clause
"""The solvers of the core against slow definitions in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import gossamer  # noqa: F401  (loads the operators)

ops = torch.ops.gossamer


def problem(rows: int, cols: int, tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """A weight and a damped Gram matrix of correlated inputs, float32."""
    x = torch.randn(tokens or 4 * cols, cols) @ torch.randn(cols, cols)
    gram = (x.T @ x / x.shape[0]).double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(cols)
    return torch.randn(rows, cols), gram.float()


def factor_of(gram: Tensor) -> Tensor:
    """U upper triangular with UᵀU = H⁻¹."""
    return torch.linalg.cholesky(torch.linalg.inv(gram.double()), upper=True).float()


def loss(weight: Tensor, dense: Tensor, gram: Tensor) -> Tensor:
    """(w − w₀)·G·(w − w₀)ᵀ of each row."""
    delta = weight.double() - dense.double()
    return (delta @ gram.double() * delta).sum(dim=1)


# --- The OBS sweep --------------------------------------------------------------------------------


def eliminate(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """Optimal brain surgeon, one column at a time, with a fresh inverse for each."""
    w = weight.double().clone()
    for col in range(w.shape[1]):
        inverse = torch.linalg.inv(gram.double()[col:, col:])
        step = (w[:, col] / inverse[0, 0])[:, None] * inverse[0]
        w[:, col:] -= torch.where(mask[:, col, None], 0.0, step)
        w[:, col] = torch.where(mask[:, col], w[:, col], 0.0)
    return w


@pytest.mark.parametrize("block", [1, 3, 16, 128])
def test_sweep_of_a_given_mask_is_optimal_brain_surgeon(block: int) -> None:
    weight, gram = problem(5, 37)
    mask = torch.rand(5, 37) > 0.5
    got, kept = ops.obs_sweep(weight, factor_of(gram), mask, "", block, 0)
    assert torch.equal(kept, mask)
    assert torch.equal(got == 0, ~mask)
    # Float32 through a matrix of condition c is off by about c·2⁻²³ of the largest value.
    bound = torch.linalg.cond(gram.double()) * 2.0**-23 * 37 * weight.abs().max()
    assert (got - eliminate(weight, gram, mask)).abs().max() < bound
    assert bound < 0.1


@pytest.mark.parametrize("pattern", ["unstructured:0.7", "2:4", "fanin:0.3", "4:8"])
def test_sweep_selects_by_weight_and_factor(pattern: str) -> None:
    weight, gram = problem(6, 48)
    factor = factor_of(gram)
    got, kept = ops.obs_sweep(weight, factor, None, pattern, 16, 0)
    assert ops.find_violation(got, pattern) == ""
    again, _ = ops.obs_sweep(weight, factor, kept, "", 16, 0)
    assert torch.equal(got, again)
    # The first thing that is selected sees the weight as it came.
    scores = (weight / factor.diagonal()).square()
    if pattern in ("2:4", "4:8"):
        group = int(pattern[2:])
        want = ops.select_masks([scores[:, :group]], pattern, "row")[0]
        assert torch.equal(kept[:, :group], want)
    else:
        scope = "tensor" if pattern.startswith("unstructured") else "row"
        want = ops.select_masks([scores[:, :16].contiguous()], pattern, scope)[0]
        assert int(want.sum()) == int(kept[:, :16].sum())
        assert torch.equal(kept[:, :16], want)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.501, 1.0])
def test_sweep_counts_are_exact_over_all_blocks(sparsity: float) -> None:
    weight, gram = problem(7, 50)
    got, _ = ops.obs_sweep(weight, factor_of(gram), None, f"unstructured:{sparsity}", 16, 0)
    assert int((got == 0).sum()) == int(sparsity * 350 + 0.5)


def test_groups_start_anew_in_each_segment() -> None:
    weight, gram = problem(4, 18)
    got, _ = ops.obs_sweep(weight, factor_of(gram), None, "2:4", 128, 6)
    for begin in range(0, 18, 6):
        assert ops.find_violation(got[:, begin : begin + 6].contiguous(), "2:4") == ""
        assert ((got[:, begin : begin + 4] != 0).sum(dim=1) == 2).all()


def test_sweep_refuses_what_it_cannot_do() -> None:
    weight, gram = problem(4, 8)
    factor = factor_of(gram)
    with pytest.raises(ValueError, match=r"cannot select pattern 'block:2x2:0.5'"):
        ops.obs_sweep(weight, factor, None, "block:2x2:0.5", 128, 0)
    with pytest.raises(ValueError, match="element 3 of the diagonal is 0"):
        ops.obs_sweep(weight, factor * (torch.arange(8) != 3), None, "2:4", 128, 0)
    broken = weight.clone()
    broken[1, 2] = torch.nan
    with pytest.raises(ValueError, match="row 1, column 2 is nan"):
        ops.obs_sweep(broken, factor, None, "2:4", 128, 0)
    with pytest.raises(ValueError, match=r"factor is \[1, 7, 8\], expected \[1, 8, 8\]"):
        ops.obs_sweep(weight, factor[:7], None, "2:4", 128, 0)
    with pytest.raises(ValueError, match="segment 3"):
        ops.obs_sweep(weight, factor, None, "2:4", 128, 3)
    with pytest.raises(ValueError, match="a mask or a pattern"):
        ops.obs_sweep(weight, factor, weight != 0, "2:4", 128, 0)


# --- Refit on the support -------------------------------------------------------------------------


def solve_on_support(gram: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The normal equations of each row, on its own support."""
    solution = torch.zeros_like(target, dtype=torch.float64)
    for row in range(target.shape[0]):
        kept = mask[row].nonzero().flatten()
        matrix = gram.double()[kept][:, kept]
        solution[row, kept] = torch.linalg.solve(matrix, target[row, kept].double())
    return solution


def test_refit_solves_the_normal_equations() -> None:
    weight, gram = problem(9, 40)
    mask = torch.rand(9, 40) > 0.6
    mask[3] = False
    target = weight @ gram
    got, iterations, residual = ops.refit(weight * mask, gram, target, mask, 500, 1e-6)
    assert torch.equal(got[~mask], torch.zeros(int((~mask).sum())))
    assert 0 < iterations < 500
    assert residual <= 1e-6
    want = solve_on_support(gram, target, mask)
    bound = torch.linalg.cond(gram.double()) * 1e-5 * want.abs().max()
    assert (got - want).abs().max() < bound
    best, ours = loss(want, weight, gram), loss(got, weight, gram)
    torch.testing.assert_close(ours, best, rtol=1e-4, atol=0)


def test_refit_improves_with_every_iteration_and_reports_what_is_left() -> None:
    weight, gram = problem(8, 64)
    mask = torch.rand(8, 64) > 0.5
    losses, residuals = [], []
    for iterations in (0, 2, 5, 20):
        got, made, residual = ops.refit(weight * mask, gram, weight @ gram, mask, iterations, 1e-7)
        assert made == iterations
        losses.append(float(loss(got, weight, gram).sum()))
        residuals.append(residual)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.1 * losses[-1]
    assert residuals[-1] < residuals[0]


def test_refit_refuses_what_it_cannot_do() -> None:
    weight, gram = problem(3, 8)
    mask = torch.rand(3, 8) > 0.5
    with pytest.raises(ValueError, match="where the mask drops it"):
        ops.refit(weight, gram, weight @ gram, mask, 5, 1e-5)
    with pytest.raises(ValueError, match="diagonal is 0"):
        ops.refit(weight * mask, torch.zeros(8, 8), weight, mask, 5, 1e-5)
    with pytest.raises(ValueError, match=r"row 0: .* not finite"):
        ops.refit(weight * mask, gram, weight * torch.nan, mask | True, 5, 1e-5)


# --- ADMM -----------------------------------------------------------------------------------------


def eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors.float(), values.float()[None]


def test_admm_with_uncorrelated_inputs_is_magnitude() -> None:
    weight = torch.randn(6, 16)
    vectors, values = eigen(torch.eye(16))
    _, mask, _, _, settled = ops.admm(weight, vectors, values, "2:4", "row", 300, 0.1, 0)
    assert settled
    assert torch.equal(mask, ops.magnitude_mask(weight, "2:4", "row"))


@pytest.mark.parametrize("pattern", ["unstructured:0.5", "2:4", "fanin:0.5", "block:1x2:0.5"])
def test_admm_beats_one_shot_masks_after_refit(pattern: str) -> None:
    weight, gram = problem(16, 32)
    scale = gram.diagonal().rsqrt()
    gram = gram * scale * scale[:, None]
    got, mask, iterations, penalty, _ = ops.admm(
        weight, *eigen(gram), pattern, "tensor", 300, 0.1, 0
    )
    assert ops.find_violation(got, pattern) == ""
    assert torch.equal(got == 0, ~mask)
    assert 0 < iterations <= 300
    assert penalty > 0
    best = loss(solve_on_support(gram, weight @ gram, mask), weight, gram).sum()
    simple = ops.select_masks([weight.square()], pattern, "tensor")[0]
    rival = loss(solve_on_support(gram, weight @ gram, simple), weight, gram).sum()
    assert best < 0.95 * rival


def test_admm_is_near_the_best_support_of_all() -> None:
    weight, gram = problem(4, 8)
    scale = gram.diagonal().rsqrt()
    gram = gram * scale * scale[:, None]
    _, mask, *_ = ops.admm(weight, *eigen(gram), "fanin:0.5", "row", 300, 0.1, 0)
    ours = loss(solve_on_support(gram, weight @ gram, mask), weight, gram)
    every = []
    for kept in itertools.combinations(range(8), 4):
        rows = torch.zeros(4, 8, dtype=torch.bool)
        rows[:, list(kept)] = True
        every.append(loss(solve_on_support(gram, weight @ gram, rows), weight, gram))
    ranks = (torch.stack(every) < ours - 1e-9).sum(dim=0)
    assert (ranks <= 7).all(), "among the best tenth of the 70 supports in every row"


# --- Swaps ----------------------------------------------------------------------------------------


def swap_by_trying(weight: Tensor, gram: Tensor, mask: Tensor, group: int) -> Tensor:
    """The best of all swaps of a row, each evaluated in full, until none lowers the loss."""
    mask, w, g = mask.clone(), weight.double(), gram.double()

    def cost(row: Tensor, kept: Tensor) -> float:
        z = row * ~kept
        return float(z @ g @ z)

    for r in range(mask.shape[0]):
        while True:
            now, best, move = cost(w[r], mask[r]), 0.0, None
            for u, p in itertools.product(range(mask.shape[1]), repeat=2):
                if mask[r, u] or not mask[r, p] or (group and u // group != p // group):
                    continue
                trial = mask[r].clone()
                trial[u], trial[p] = True, False
                change = cost(w[r], trial) - now
                if change < best - 1e-9 * now:
                    best, move = change, trial
            if move is None:
                break
            mask[r] = move
    return mask


def test_swaps_end_where_no_swap_helps() -> None:
    weight, gram = problem(3, 16)
    for group, pattern in ((0, "fanin:0.5"), (4, "2:4")):
        mask = ops.magnitude_mask(weight, pattern, "row")
        got, swaps = ops.swap_refine(weight, gram, mask, group, 0, 0)
        assert swaps > 0
        assert torch.equal(swap_by_trying(weight, gram, got, group), got)
        assert torch.equal(got.sum(dim=1), mask.sum(dim=1))
        # The same best swap each time leads to the same mask.
        assert torch.equal(swap_by_trying(weight, gram, mask, group), got)
        assert (loss(weight * got, weight, gram) <= loss(weight * mask, weight, gram)).all()


def test_swaps_on_a_wide_row_are_locally_best_too() -> None:
    weight, gram = problem(2, 150)
    got, _ = ops.swap_refine(weight, gram, ops.magnitude_mask(weight, "fanin:0.5", "row"), 0, 0, 0)
    z = (weight * ~got).double()
    c = z @ gram.double()
    w, d = weight.double(), gram.double().diagonal()
    take, drop = w * w * d - 2 * w * c, w * w * d + 2 * w * c
    change = take[:, :, None] + drop[:, None] - 2 * (w[:, :, None] * w[:, None]) * gram.double()
    change = torch.where(got[:, :, None] | ~got[:, None], torch.inf, change)
    assert float(change.min()) > -1e-6 * float((z * c).sum())


def test_the_number_of_swaps_is_bounded() -> None:
    weight, gram = problem(4, 32)
    mask = ops.magnitude_mask(weight, "fanin:0.5", "row")
    _, all_swaps = ops.swap_refine(weight, gram, mask, 0, 0, 0)
    got, swaps = ops.swap_refine(weight, gram, mask, 0, 0, 1)
    taken = (got & ~mask).sum(dim=1)
    assert all_swaps > 4
    assert 0 < swaps <= 4
    assert int(taken.sum()) == swaps
    assert int(taken.max()) == 1


# --- LAMP, transposable masks, Gram matrices ------------------------------------------------------


def test_lamp_scores_by_definition() -> None:
    weight = torch.randint(-4, 5, (5, 7)).float()
    got = ops.lamp_scores(weight)
    values = weight.double().flatten().square().tolist()
    for i, own in enumerate(values):
        larger = sum(v for j, v in enumerate(values) if v > own or (v == own and j <= i))
        assert got.flatten()[i].item() == pytest.approx(own / larger if own else 0.0, rel=1e-12)
    assert got.max() == 1


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_matrices_accumulate(dtype: torch.dtype) -> None:
    x, y = torch.randn(9000, 12), torch.randn(9000, 9)
    gram = torch.zeros(12, 9, dtype=dtype)
    for rows in (slice(0, 1), slice(1, 300), slice(300, 9000), slice(0, 0)):
        ops.gram_(gram, x[rows], y[rows])
    want = x.double().T @ y.double()
    # Sums of n products of float32: n·2⁻²⁴ of the sum of magnitudes.
    count = 9000 if dtype == torch.float32 else 4096
    bound = count * 2.0**-24 * (x.abs().double().T @ y.abs().double())
    assert ((gram - want).abs() <= bound).all()
    with pytest.raises(ValueError, match=r"y is .*expected"):
        ops.gram_(gram, x, y[:5])


DATA_DEPENDENT = ("test_schema", "test_autograd_registration")

# --- Operators ------------------------------------------------------------------------------------


def test_operators_keep_their_word_to_torch() -> None:
    weight, gram = problem(4, 8)
    mask = torch.rand(4, 8) > 0.5
    check = torch.library.opcheck
    check(ops.obs_sweep.default, (weight, factor_of(gram), mask, "", 4, 0))
    check(ops.obs_sweep.default, (weight, factor_of(gram), None, "2:4", 4, 0))
    check(ops.lamp_scores.default, (weight,))
    check(ops.transposable_mask.default, (weight, 4, 8))
    check(ops.gram_.default, (torch.zeros(8, 8), torch.randn(5, 8), torch.randn(5, 8)))
    # What these answer depends on the data: no shapes to derive, schemas and dispatch to check.
    refit = (weight * mask, gram, weight @ gram, mask, 5, 1e-5)
    check(ops.refit.default, refit, test_utils=DATA_DEPENDENT)
    admm = (weight, *eigen(gram), "2:4", "row", 5, 0.1, 0)
    check(ops.admm.default, admm, test_utils=DATA_DEPENDENT)
    swap = (weight, gram, mask, 0, 0, 0)
    check(ops.swap_refine.default, swap, test_utils=DATA_DEPENDENT)


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
    from gossamer.prune import ALPS, Magnitude, SparseGPT, Transposable, Wanda

    for method in (Magnitude, Wanda, SparseGPT):
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
    alps = ALPS(Transposable())  # type: ignore[arg-type]
    alps.prepare(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    with pytest.raises(ValueError, match="is an object"):
        alps.calibrate([torch.randn(16, 8)])
