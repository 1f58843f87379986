# SPDX-License-Identifier: BSD-3-Clause
"""Blocks are tuned until they give what they gave in the dense model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.prune import (
    ByMagnitude,
    LayerProblem,
    LeastSquares,
    OneShot,
    Reconstruction,
    SparseGPT,
)
from gossamer.prune.correction import Fold
from gossamer.prune.reconstruction import Tuned
from gossamer.prune.stages import Stage

ops = torch.ops.gossamer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), Block(), Block(), nn.Linear(12, 4))


def batches() -> list[Tensor]:
    mix = torch.randn(6, 6)
    return [torch.randn(128, 6) @ mix for _ in range(4)]


@pytest.mark.parametrize("held_out", [False, True])
def test_blocks_come_closer_to_the_dense_model(held_out: bool) -> None:
    model, data = net(), batches()
    dense = copy.deepcopy(model)
    x = torch.cat(data)
    missed = {}
    for epochs in (0, 20):
        pruned = copy.deepcopy(model)
        method = OneShot(
            "2:4",
            ByMagnitude(),
            LeastSquares(),
            target="dense-target",
            reconstruction=Reconstruction(epochs, held_out=held_out) if epochs else None,
        )
        method.prepare(pruned, {"3": None, "*": "2:4"})
        report = method.calibrate(data)
        method.squash_mask()
        for name in ("1.up", "1.down", "2.up", "2.down"):
            weight = pruned.get_submodule(name).weight.detach()
            assert ops.find_violation(weight, "2:4") == ""
        missed[epochs] = float((pruned(x) - dense(x)).detach().square().sum())
        if not epochs:
            assert not report.blocks
            continue
        assert [block.name for block in report.blocks] == ["0", "1", "2"]
        assert all(block.after <= block.before for block in report.blocks)
        whole = dense[:3](x).detach()
        last = (pruned[:3](x).detach() - whole).square().sum() / whole.square().sum()
        assert report.blocks[-1].after == pytest.approx(float(last), rel=1e-3)
        assert "block error" in str(report)
        named = dict(pruned.named_parameters())
        for name, parameter in dense.named_parameters():
            if "norm" in name or "bias" in name:
                assert torch.equal(named[name], parameter), name
    assert missed[20] < 0.5 * missed[0]


def tuned(wanted: list[Tensor], half: bool) -> tuple[Tensor, Tensor, Tuned]:
    """The weight of a linear block before and after it was tuned to give other outputs.

    Each batch wants those of the weight with something added to it.
    """
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    calls = [((x,), {}) for x in torch.randn(len(wanted), 32, 6)]
    goals = [x @ (before + add).T for ((x,), _), add in zip(calls, wanted, strict=True)]
    with torch.no_grad():
        found = Reconstruction(epochs=60, rate=0.1).run(
            Stage(layer), [layer.weight], calls, goals, [before] if half else None
        )
    return before, layer.weight.detach(), found


def test_batches_that_are_held_out_decide_how_far_to_go() -> None:
    torch.manual_seed(1)
    add = 0.3 * torch.randn(4, 6)
    nothing = torch.zeros(4, 6)
    # Every other batch judges: with what the block gives already, or with as much as the others.
    before, after, found = tuned([add, nothing] * 4, half=True)
    assert torch.equal(before, after)
    assert found.part == 0
    assert found.after == found.before
    before, after, found = tuned([add] * 8, half=True)
    assert found.part == 1
    assert (after - before - add).norm() < 0.2 * add.norm()
    before, after, found = tuned([add, 0.5 * add] * 4, half=True)
    assert found.part == 0.5
    assert found.after < found.before


def test_without_a_half_the_batches_themselves_decide() -> None:
    torch.manual_seed(1)
    add = 0.3 * torch.randn(4, 6)
    before, after, found = tuned([add, torch.zeros(4, 6)] * 4, half=False)
    assert not torch.equal(before, after)
    assert found.part == 1
    assert found.after < found.before


def test_the_first_half_is_fitted_without_the_second() -> None:
    """What a fold gives is what a calibration of its batches alone would have given."""
    torch.manual_seed(0)
    batches = [torch.randn(40, 12) for _ in range(4)]
    folds = []
    for index in (0, 1):
        x = torch.cat(batches[index::2]).double()
        folds.append(Fold((x.T @ x)[None], None, len(x)))
    weight = torch.randn(1, 8, 12)
    whole = LayerProblem("w", weight, (folds[0].gram + folds[1].gram) / 160, "2:4", tokens=160)
    alone = LayerProblem("w", weight, folds[0].gram / 80, "2:4", tokens=80)
    for problem in (whole, alone):
        ByMagnitude()(problem)
        LeastSquares()(problem)
    assert torch.equal(whole.mask, alone.mask)
    torch.testing.assert_close(whole.fitted_to(folds[0]), alone.solution, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(whole.solution, alone.solution, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"rate": 0.0}])
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"{name}={settings[name]}"):
        Reconstruction(**settings)


def test_gradients_and_flags_stay_as_they_were() -> None:
    model = net()
    model[1].up.weight.requires_grad_(False)
    model[2].up.weight.grad = torch.ones_like(model[2].up.weight)
    method = SparseGPT("2:4", target="dense-target")
    method.reconstruction = Reconstruction(2)
    method.prepare(model)
    method.calibrate(batches())
    method.squash_mask()
    assert not model[1].up.weight.requires_grad
    assert model[2].down.weight.requires_grad
    assert model[2].down.weight.grad is None
    assert torch.equal(model[2].up.weight.grad, torch.ones_like(model[2].up.weight))


def test_steps_that_do_not_help_are_taken_back() -> None:
    model, data = net(), batches()
    weights = []
    for reconstruction in (None, Reconstruction(3, rate=1e4)):
        pruned = copy.deepcopy(model)
        method = OneShot("2:4", ByMagnitude(), LeastSquares(), reconstruction=reconstruction)
        method.prepare(pruned)
        report = method.calibrate(data)
        weights.append(pruned.state_dict())
    assert all(block.after == block.before for block in report.blocks)
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name


def test_an_error_after_a_tuned_block_undoes_it() -> None:
    def explode(problem: LayerProblem) -> None:
        if problem.fqn == "2.up.weight":
            raise RuntimeError("it went wrong")

    model = net()
    method = OneShot("2:4", ByMagnitude(), explode, reconstruction=Reconstruction(2))
    method.prepare(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="it went wrong"):
        method.calibrate(batches())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
