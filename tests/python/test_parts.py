# SPDX-License-Identifier: BSD-3-Clause
"""Parts of one's own that write what no layer can take; the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.prune import ByWanda, LayerProblem, LeastSquares, OneShot, Part, Score
from prune_helpers import assert_same, net, snapshot


def everything(problem: LayerProblem) -> None:
    problem.mask = torch.ones_like(problem.weight, dtype=torch.bool)


def numbers(problem: LayerProblem) -> None:
    problem.mask = torch.ones_like(problem.weight)


def one_column(problem: LayerProblem) -> None:
    problem.solution = problem.weight[..., :1]


def doubles(problem: LayerProblem) -> None:
    problem.solution = problem.kept_weight.double()


class Narrow(Score):
    def score(self, problem: LayerProblem) -> Tensor:
        return problem.weight.abs()[..., :4]


class Nothing(Score):
    def score(self, problem: LayerProblem) -> Tensor:
        return problem.weight * float("nan")


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((everything,), r"'0.weight': the mask that a part wrote breaks its pattern: .*row 0"),
        (
            (numbers,),
            r"'0.weight': a part wrote a mask of torch.float32 .*torch.bool \[1, 32, 16\]",
        ),
        ((ByWanda(), one_column), r"a solution of torch.float32 \[1, 32, 1\]: .* \[1, 32, 16\]"),
        ((ByWanda(), doubles), r"a solution of torch.float64 .*: torch.float32 "),
        ((Narrow(),), r"scores of '0.weight' are \[1, 32, 4\]: one score for each weight"),
        ((Nothing(),), r"'0.weight': the score at .* is NaN"),
        ((lambda problem: None,), r"'0.weight': none of the parts selected a mask"),
    ],
)
def test_what_no_layer_can_take(parts: tuple[Part, ...], match: str) -> None:
    model, method = net(), OneShot("2:4", *parts)
    method.prepare(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        method.calibrate([torch.randn(64, 16)])
    assert_same(model, before)


def test_a_solve_of_ones_own_is_held_against_the_pattern() -> None:
    class Mine(OneShot):
        def solve(self, problem: LayerProblem) -> None:
            everything(problem)

    method = Mine("unstructured:0.5")
    method.prepare(net())
    method.calibrate([torch.randn(64, 16)])  # Any number of zeros is unstructured.
    for pattern in ("2:4", "vnm:4:2:8", "fanin:0.5"):
        method = Mine(pattern)
        method.prepare(net())
        with pytest.raises(ValueError, match="breaks its pattern"):
            method.calibrate([torch.randn(64, 16)])


@pytest.mark.parametrize("pattern", ["unstructured:0.37", "block:4x4:0.3", "fanin:0.37", "1:4"])
@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_masks_that_were_selected_hold(pattern: str, scope: str) -> None:
    def again(problem: LayerProblem) -> None:
        problem.mask = problem.select(problem.weight.abs())

    method = OneShot(pattern, again, scope=scope)
    method.prepare(net())
    assert method.calibrate([torch.randn(64, 16)]).layers[0].zeros > 0.2


@pytest.mark.parametrize("channels", [6, 8])
def test_groups_end_with_the_channels_of_a_tap(channels: int) -> None:
    def again(problem: LayerProblem) -> None:
        ByWanda()(problem)

    method = OneShot("2:4", again)
    method.prepare(nn.Sequential(nn.Conv2d(channels, 4, 3)))
    report = method.calibrate([torch.randn(2, channels, 6, 6)])
    assert report.layers[0].zeros == pytest.approx(0.5 if channels == 8 else 1 / 3)


def test_a_solution_is_zero_where_it_is_dropped() -> None:
    def beside(problem: LayerProblem) -> None:
        problem.solution = problem.weight.clone()

    found = []
    for parts in ((ByWanda(),), (ByWanda(), beside)):
        torch.manual_seed(0)
        method = OneShot("2:4", *parts, target="dense-inputs")
        method.prepare(net())
        torch.manual_seed(1)
        found.append(method.calibrate([torch.randn(64, 16)]).layers)
    for plain, written in zip(*found, strict=True):
        assert written.error == pytest.approx(plain.error)
        assert written.error > 0


@pytest.mark.parametrize("part", [ByWanda, "wanda", None, LeastSquares])
def test_parts_are_called(part: Any) -> None:
    with pytest.raises(TypeError, match=r"part .*: something that is called with a LayerProblem"):
        OneShot("2:4", part)


def test_functions_are_parts() -> None:
    part: Callable[[LayerProblem], None] = ByWanda()
    assert OneShot("2:4", part, lambda problem: None).parts[0] is part
