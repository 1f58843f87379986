# SPDX-License-Identifier: BSD-3-Clause
"""`transposable:N:M` in the grammar of sparsifiers: read, grown, saved and taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer as gs
from cli_helpers import gossamer, report
from gossamer.prune import (
    ByWanda,
    GradualMagnitude,
    LeastSquares,
    Magnitude,
    OneShot,
    Swap,
    Transposable,
    masked_parameters,
    uniform,
)
from prune_helpers import net

ops = torch.ops.gossamer


def assert_transposable(weight: Tensor, pattern: str) -> None:
    kept = (weight.detach() != 0).float()
    for matrix in (kept, kept.T):
        assert ops.find_violation(matrix.contiguous(), pattern) == ""
    n, m = map(int, pattern.split(":"))
    assert kept.mean() == n / m


@pytest.mark.parametrize("text", ["2:4", "1:2", "4:8", "3:32"])
def test_the_text_reads_back(text: str) -> None:
    pattern = Transposable(text)
    assert str(pattern) == f"transposable:{text}"
    assert Transposable.read(str(pattern)) == pattern
    assert Transposable.read(f"transposable {text}") == pattern  # How states were written once.
    assert Transposable.read(text) is None
    assert len({pattern, Transposable(text), Transposable("1:4")}) == 2


@pytest.mark.parametrize("text", ["transposable:2:6", "transposable:5:4", "transposable:x"])
def test_what_is_no_such_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"Magnitude, 'defaults': Transposable\(.*'4:8'"):
        Magnitude(text)


def test_a_text_and_the_object_select_alike() -> None:
    torch.manual_seed(0)
    found = []
    for pattern, config in (
        ("transposable:2:4", None),
        (Transposable("2:4"), None),
        ("2:4", {"*": "transposable:2:4"}),
        ("unstructured:0.5", uniform(net(), "transposable:2:4")),
    ):
        torch.manual_seed(0)
        model = net()
        sparsifier = Magnitude(pattern)
        sparsifier.prepare(model, config)
        sparsifier.step()
        sparsifier.squash_mask()
        found.append(model[0].weight.detach())
        assert_transposable(model[0].weight, "2:4")
    assert all(torch.equal(weight, found[0]) for weight in found)


def test_one_shot_takes_the_text() -> None:
    model = net()
    method = OneShot("transposable:4:8", ByWanda(), LeastSquares())
    method.prepare(model)
    report = method.calibrate([torch.randn(64, 16)])
    method.squash_mask()
    assert_transposable(model[0].weight, "4:8")
    assert report.layers[0].pattern == "transposable:4:8"


def test_swaps_of_rows_would_break_it() -> None:
    with pytest.raises(ValueError, match="'transposable:2:4' would be broken: leave Swap out"):
        OneShot("transposable:2:4", ByWanda(), Swap())


def test_it_grows_from_step_to_step() -> None:
    model = net()
    pruner = GradualMagnitude("transposable:2:4", 0, 4, schedule="linear")
    pruner.prepare(model)
    zeros = []
    for _ in range(5):
        pruner.step()
        mask = next(masked_parameters(model))[3].mask
        zeros.append(1 - float(mask.float().mean()))
        for matrix in (mask, mask.T):
            kept = 4 - round(4 * zeros[-1])
            assert ops.find_violation(matrix.float().contiguous(), f"{kept}:4") == ""
    assert zeros == [0, 0.25, 0.25, 0.5, 0.5]
    pruner.squash_mask()  # Warns of nothing: it has come to its end.


@pytest.mark.parametrize("prepared", [False, True])
def test_the_state_comes_back_without_the_object(prepared: bool, tmp_path: Path) -> None:
    def made() -> GradualMagnitude:
        return GradualMagnitude("unstructured:0.5", 0, 4)  # The state knows the pattern.

    model = net()
    pruner = GradualMagnitude(Transposable("2:4"), 0, 4)
    pruner.prepare(model)
    pruner.step()
    torch.save((model.state_dict(), pruner.state_dict()), tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["groups"][0]["pattern"] == "transposable:2:4"
    fresh, again = net(), made()
    if prepared:
        again.prepare(fresh)
        again.load_state_dict(state)
    else:
        again.load_state_dict(state)
        again.prepare(fresh)
    fresh.load_state_dict(weights)
    for own in (pruner, again):
        for _ in range(3):
            own.step()
        own.squash_mask()
    assert_transposable(fresh[0].weight, "2:4")
    assert torch.equal(model[0].weight, fresh[0].weight)


def test_the_core_says_what_such_a_weight_is_packed_as() -> None:
    weight = nn.Linear(8, 8).weight.detach()
    with pytest.raises(ValueError, match=r"transposable:2:4.*packed and run as N:M"):
        gs.SparseWeight.from_dense(weight, pattern="transposable:2:4")


@pytest.mark.parametrize("pattern", ["transposable:2:4", "transposable:3:16"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_command_selects_what_python_selects(tmp_path: Path, pattern: str, scope: str) -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Linear(20, 12))
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(model.state_dict(), path)
    found = report("prune", path, "-p", pattern, "--scope", scope, "-o", out)
    assert (found["pattern"], found["pruned"]) == (pattern, 2)
    magnitude = Magnitude(pattern)
    magnitude.prepare(model)
    magnitude.step()
    magnitude.squash_mask()
    got = load_file(out)
    for name, want in model.state_dict().items():
        assert torch.equal(got[name], want), name
    gossamer("verify", out, "--pattern", pattern.removeprefix("transposable:"))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("transposable:2:64", "M one of 2, 4, 8, 16 and 32"),
        ("transposable:fanin:0.5", "M one of 2, 4, 8, 16 and 32"),
        ("transposable:2", "pattern '2'"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, pattern: str, words: str) -> None:
    path = tmp_path / "in.safetensors"
    save_file(nn.Linear(8, 8).state_dict(), path)
    done = gossamer("prune", path, "-p", pattern, "-o", tmp_path / "out.safetensors", status=2)
    assert words in done.stderr
    done = gossamer("verify", path, "--pattern", "transposable:2:4", status=2)
    assert "packed and run as N:M" in done.stderr
