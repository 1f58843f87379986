# SPDX-License-Identifier: BSD-3-Clause
"""How far weights are corrected towards the dense target is found on inputs that were held out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.prune import ByMagnitude, LeastSquares, OneShot
from gossamer.prune.correction import Fold, held_out_damping

SETTINGS: dict[str, dict[str, Any]] = {
    "inputs": {},
    "target": {"target": "dense-target"},
    "held out": {"target": "dense-target", "held_out_correction": True},
}


def folds(x: Tensor, x0: Tensor) -> list[Fold]:
    found = []
    for a, b in zip(x.double().chunk(2), x0.double().chunk(2), strict=True):
        found.append(Fold((a.T @ a)[None], (b.T @ a)[None], len(a)))
    return found


def missed(weight: Tensor, found: list[Fold], damping: float, judge: int) -> float:
    """‖W·X₀ − W̃·X‖² of one half with the correction that the other half gives, by definition."""
    fit, own = found[1 - judge], found[judge]
    gram = fit.gram[0] / fit.tokens
    ridge = damping * gram.diagonal().mean() * torch.eye(len(gram)).double()
    step = weight @ (fit.cross[0] / fit.tokens - gram) @ torch.linalg.inv(gram + ridge)
    error = -2 * (step * (weight @ (own.cross[0] - own.gram[0]))).sum()
    return float(error + ((step @ own.gram[0]) * step).sum())


@pytest.mark.parametrize("noise", [0.05, 2.0])
def test_the_damping_is_the_best_of_both_halves(noise: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 24)
    x0 = x @ (torch.eye(24) + 0.1 * torch.randn(24, 24)) + noise * torch.randn(200, 24)
    weight = torch.randn(6, 24).double()
    found = folds(x, x0)
    damping = 2 * held_out_damping(weight[None].float(), found)  # Two folds: fitted to one.
    tried = [10 ** (step / 4) for step in range(-8, 13)]
    losses = {d: sum(missed(weight, found, d, half) for half in (0, 1)) for d in tried}
    if math.isinf(damping):
        assert min(losses.values()) > 0
    else:
        assert losses[min(losses, key=lambda d: abs(d - damping))] == min(losses.values())


def test_noise_is_not_corrected_and_what_repeats_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 64)
    weight = torch.randn(1, 8, 64)
    noise = held_out_damping(weight, folds(x, x + torch.randn(100, 64)))
    linear = held_out_damping(weight, folds(x, 1.5 * x))
    assert noise > 10
    assert linear <= 0.01


def test_a_correction_that_was_held_out_is_worth_it_on_fresh_inputs() -> None:
    """It costs nothing where inputs are many for what there is to correct."""
    torch.manual_seed(3)
    mix = torch.randn(48, 48) / 7
    model = nn.Sequential(
        nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 16)
    )
    batches = [torch.randn(60, 48) @ mix for _ in range(6)]
    fresh = torch.randn(4000, 48) @ mix
    want = model(fresh).detach()
    errors = {}
    for name, settings in SETTINGS.items():
        pruned = copy.deepcopy(model)
        method = OneShot("2:4", ByMagnitude(), LeastSquares(), **settings)
        method.prepare(pruned)
        report = method.calibrate(batches)
        errors[name] = float((pruned(fresh) - want).detach().square().mean())
        used = [layer.notes.get("correction") for layer in report.layers]
        assert all((damping is not None) == (name == "held out") for damping in used)
    assert errors["held out"] < 1.1 * errors["target"] < errors["inputs"]


def test_a_dead_group_is_left_as_it_is_and_the_others_are_corrected() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = 0
    batches = [torch.randn(8, 4, 8, 8) for _ in range(4)]
    dense = model[2].weight.detach().clone()
    method = OneShot("2:4", ByMagnitude(), LeastSquares(), **SETTINGS["held out"])
    method.prepare(model)
    report = method.calibrate(batches)
    assert 0 < report.layers[1].notes["correction"] < math.inf
    kept = method.mask(method.groups[1])
    torch.testing.assert_close(model[2].weight[:4], torch.where(kept, dense, 0)[:4])
    assert not torch.allclose(model[2].weight[4:], torch.where(kept, dense, 0)[4:], rtol=0.01)


def test_a_dead_group_does_not_change_the_damping() -> None:
    torch.manual_seed(5)
    x = torch.randn(200, 24)
    found = folds(x, x @ (torch.eye(24) + 0.1 * torch.randn(24, 24)))
    weight = torch.randn(1, 6, 24)
    both = [
        Fold(*(torch.cat([sums, torch.zeros_like(sums)]) for sums in (f.gram, f.cross)), f.tokens)
        for f in found
    ]
    assert held_out_damping(weight.repeat(2, 1, 1), both) == held_out_damping(weight, found)


def test_one_batch_has_no_halves() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    method = OneShot("2:4", ByMagnitude(), target="dense-target", held_out_correction=True)
    method.prepare(model)
    report = method.calibrate([torch.randn(64, 16)])
    assert "correction" not in report.layers[0].notes
