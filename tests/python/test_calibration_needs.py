# SPDX-License-Identifier: BSD-3-Clause
"""What calibration gathers for a method, and what it judges on batches that a layer never saw."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import (
    ByMagnitude,
    ByWanda,
    CalibrationReport,
    LayerProblem,
    LeastSquares,
    OneShot,
    Reconstruction,
    Score,
    calibrated_layer,
)
from gossamer.prune.gathering import WIDE
from prune_helpers import assert_same, snapshot

INPUTS = WIDE + 16
ROUNDING = 2 * INPUTS * 2**-24
"""Of products of INPUTS terms in float32, on either side."""

# --- Norms instead of Gram matrices ---------------------------------------------------------------


def calibrated(method: OneShot, batches: list[Tensor], seed: int = 0) -> tuple[nn.Linear, Any]:
    """A wide layer after calibration, and its result."""
    torch.manual_seed(seed)
    layer = nn.Linear(INPUTS, 24)
    method.prepare(layer)
    (result,) = method.calibrate(batches).layers
    return layer, result


def wide_batches(*tokens: int) -> list[Tensor]:
    torch.manual_seed(1)
    sizes = torch.rand(INPUTS) + 0.1
    return [torch.randn(count, INPUTS) * sizes for count in tokens]


def refuse(*_: object) -> None:
    raise AssertionError("a Gram matrix was gathered")


@pytest.mark.parametrize("method", [gs.Wanda, gs.RIA, lambda p: OneShot(p, ByMagnitude())])
def test_norms_are_enough_for_scores_of_norms(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = wide_batches(300, 100)
    monkeypatch.setattr(calibrated_layer, "add_products", refuse)
    layer, result = calibrated(method("2:4"), batches)
    monkeypatch.undo()
    assert result.tokens == 400
    assert result.error_tokens is None
    # Reading the Gram matrix changes what is gathered, not what is found.
    reader = method("2:4")
    reader.parts = (*reader.parts, lambda problem: problem.gram)
    other, exact = calibrated(reader, batches)
    assert torch.equal(layer.weight, other.weight)
    assert result.error == pytest.approx(exact.error, rel=ROUNDING)


def test_the_error_is_that_of_some_inputs_where_there_are_many() -> None:
    batches = wide_batches(900, 40, 700)
    layer, result = calibrated(gs.Wanda("2:4"), batches)
    assert result.error_tokens == math.ceil(1640 / 3)
    assert result.tokens == 1640
    x = torch.cat(batches).double()
    torch.manual_seed(0)
    dense = nn.Linear(INPUTS, 24).weight.detach().double()
    parts = (x @ (dense - layer.weight.detach()).T).square().sum(dim=1)
    whole = (x @ dense.T).square().sum(dim=1)
    error = float(parts.sum() / whole.sum())
    # Of a ratio of means over n rows, to the first order; five standard errors.
    spread = float((parts - error * whole).std() / whole.mean()) / math.sqrt(result.error_tokens)
    assert abs(result.error - error) < 5 * spread
    # It is that of every third row, whichever batch holds it.
    assert result.error == pytest.approx(float(parts[::3].sum() / whole[::3].sum()), rel=ROUNDING)


def test_the_report_says_of_how_many_inputs_an_error_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.Linear(8, 8))
    method = gs.Wanda("2:4")
    method.prepare(model)
    report = method.calibrate(wide_batches(2000))
    wide, narrow = report.layers
    assert narrow.error_tokens is None  # Narrow layers have Gram matrices: all inputs count.
    assert f"error over {wide.error_tokens} of 2000 inputs" in str(report)
    assert str(report).count("error over") == 1


@pytest.mark.parametrize("settings", [{"target": "dense-target"}, {"reconstruction": True}])
def test_what_else_needs_gram_matrices(settings: dict[str, Any]) -> None:
    if "reconstruction" in settings:
        settings = {"reconstruction": Reconstruction(1)}
    _, result = calibrated(OneShot("2:4", ByWanda(), **settings), wide_batches(600, 600))
    assert result.error_tokens is None


def test_a_part_that_says_too_little_is_told_so() -> None:
    class Careless(Score):
        needs_gram: ClassVar[bool] = False

        def score(self, problem: LayerProblem) -> Tensor:
            assert "LayerProblem('weight'" in repr(problem)
            return problem.weight.abs() * problem.gram.diagonal(dim1=-2, dim2=-1)[:, None]

    layer = nn.Linear(INPUTS, 8)
    method = OneShot("2:4", Careless())
    method.prepare(layer)
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"'weight': only the norms .* set it to True"):
        method.calibrate(wide_batches(50))
    assert_same(layer, before)


def test_a_solve_of_ones_own_has_the_gram_matrix() -> None:
    class Own(OneShot):
        def solve(self, problem: LayerProblem) -> None:
            problem.mask = problem.select(problem.weight.abs() * problem.gram.diagonal()[:, 0])

    _, result = calibrated(Own("2:4"), wide_batches(40))
    assert result.zeros == 0.5


def test_norms_that_are_not_finite_are_refused() -> None:
    batches = wide_batches(30, 30)
    batches[1][3, 5] = torch.nan
    layer = nn.Linear(INPUTS, 8)
    method = gs.Wanda("2:4")
    method.prepare(layer)
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"'weight': its inputs hold NaN or infinity in batch 1"):
        method.calibrate(batches)
    assert_same(layer, before)


# --- What some batches never reach ----------------------------------------------------------------


class Routed(nn.Module):
    """A block with an expert that batches of even size reach, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.expert = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.down(F.gelu(self.up(x)))
        return y + 0.1 * self.expert(y) if len(x) % 2 == 0 else y


def routed(sizes: list[int], tunes: bool) -> tuple[nn.Module, CalibrationReport]:
    torch.manual_seed(0)
    model = nn.Sequential(Routed(), Routed(), nn.Linear(12, 4))
    mix = torch.randn(12, 12) / 3
    batches = [torch.randn(size, 12) @ mix for size in sizes]
    method = OneShot(
        "2:4",
        ByMagnitude(),
        LeastSquares(),
        target="dense-target",
        held_out_correction=True,
        reconstruction=Reconstruction(10) if tunes else None,
    )
    method.prepare(model, {"2": None, "*": "2:4"})
    return model, method.calibrate(batches)


def test_what_one_half_of_the_batches_sees_is_not_tuned() -> None:
    """Its weights were fitted to the very batches that would judge them, or nothing judges them."""
    for sizes in ([256, 255] * 4, [255, 256] * 4):
        plain, _ = routed(sizes, tunes=False)
        tuned, report = routed(sizes, tunes=True)
        assert report.blocks[0].part > 0
        before, after = plain[0], tuned[0]
        assert torch.equal(before.expert.weight, after.expert.weight)
        assert not torch.equal(before.up.weight, after.up.weight)
        tunable = {layer.fqn: layer.tunable for layer in report.layers}
        assert [fqn for fqn, can in tunable.items() if not can] == [
            "0.expert.weight",
            "1.expert.weight",
        ]
        assert str(report).count("not tuned: one half of the batches never reaches it") == 2


def test_what_both_halves_see_is_tuned() -> None:
    plain, _ = routed([256, 255, 255, 256] * 2, tunes=False)
    tuned, report = routed([256, 255, 255, 256] * 2, tunes=True)
    assert report.blocks[0].part > 0
    assert all(layer.tunable and not layer.remarks for layer in report.layers)
    assert not torch.equal(plain[0].expert.weight, tuned[0].expert.weight)


def test_corrections_are_judged_by_the_folds_that_a_layer_saw() -> None:
    """A fold is every fourth batch: two of them are enough, one leaves nothing to judge by."""
    _, report = routed([256, 255, 256, 255], tunes=False)
    notes = {layer.fqn: layer.notes["correction"] for layer in report.layers}
    assert 0 < notes["1.expert.weight"] < math.inf
    model, report = routed([256, 255, 255, 255] * 2, tunes=False)
    (expert,) = (layer for layer in report.layers if layer.fqn == "1.expert.weight")
    assert expert.notes["correction"] == math.inf
    assert expert.remarks == ["not corrected: no batches to hold out"]
    assert "not corrected: no batches to hold out" in str(report)
    del model
