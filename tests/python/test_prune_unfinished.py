# SPDX-License-Identifier: BSD-3-Clause
"""Masks that are squashed before they are what they were to become; weights pruned twice."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.prune import (
    ByObs,
    ByWanda,
    LeastSquares,
    OneShot,
    Sparsifier,
    Transposable,
    attach_masks,
    density,
    squash_masks,
)


@pytest.fixture
def model(seeded: None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def after(sparsifier: Sparsifier, model: nn.Module, steps: int) -> Sparsifier:
    sparsifier.prepare(model)
    for _ in range(steps):
        sparsifier.step()
    return sparsifier


# --- Squashed early -------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["unstructured:0.75", "2:4", "fanin:0.75"])
def test_a_ramp_squashed_early_warns(model: nn.Sequential, pattern: str) -> None:
    gradual = after(gs.GradualMagnitude(pattern, begin_step=1, end_step=10), model, 3)
    zeros = 1 - density(model[0])
    assert 0 < zeros < 0.75
    want = rf"^squash_mask: '0.weight' \(one of 2 such weights of 2\): {zeros:.2%} zeros "
    want += r"after 3 of 10 steps, not the .* call step\(\)"
    with pytest.warns(UserWarning, match=want) as caught:
        gradual.squash_mask()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert 1 - density(model[0]) == zeros


def test_a_ramp_that_never_began_warns(model: nn.Sequential) -> None:
    gradual = after(gs.GradualMagnitude("2:4", begin_step=5, end_step=10), model, 3)
    want = "0.00% zeros after 3 of 10 steps, not the 50.00% of '2:4'"
    with pytest.warns(UserWarning, match=want):
        gradual.squash_mask()


@pytest.mark.parametrize("steps", [10, 13])
@pytest.mark.parametrize("pattern", ["unstructured:0.75", "2:4", "fanin:0.75"])
def test_a_ramp_that_ended_does_not_warn(model: nn.Sequential, pattern: str, steps: int) -> None:
    gradual = after(gs.GradualMagnitude(pattern, begin_step=1, end_step=10), model, steps)
    with silence():
        gradual.squash_mask()


def test_a_constant_schedule_is_complete_once_it_began(model: nn.Sequential) -> None:
    gradual = gs.GradualMagnitude("unstructured:0.5", 1, 10, schedule="constant")
    with silence():
        after(gradual, model, 1).squash_mask()
    assert density(model[0]) == 0.5


def test_a_resumed_ramp_knows_how_far_it_came(model: nn.Sequential) -> None:
    fresh, pattern = copy.deepcopy(model), "unstructured:0.75"
    after(gs.GradualMagnitude(pattern, begin_step=1, end_step=10), model, 10)
    attach_masks(fresh, model.state_dict()).load_state_dict(model.state_dict())
    resumed = after(gs.GradualMagnitude(pattern, begin_step=1, end_step=10), fresh, 0)
    with silence():
        resumed.squash_mask()
    assert density(fresh[0]) == 0.25


def test_a_weight_with_a_longer_ramp_is_named(model: nn.Sequential) -> None:
    gradual = gs.GradualMagnitude("2:4", begin_step=1, end_step=2)
    config = {"0": "2:4", "2": {"end_step": 9}}
    gradual.prepare(model, config)
    for _ in range(4):
        gradual.step()
    want = r"'2.weight' \(one of 1 such weights of 2\).* 4 of 9 steps"
    with pytest.warns(UserWarning, match=want):
        gradual.squash_mask()


def test_updates_that_were_off_at_the_end_can_be_made_up_for(model: nn.Sequential) -> None:
    gradual = after(gs.GradualMagnitude("2:4", begin_step=1, end_step=10), model, 5)
    gradual.enable_mask_update = False
    for _ in range(7):
        gradual.step()
    twin, other = copy.deepcopy((model, gradual))
    with pytest.warns(UserWarning, match=r"12 of 10 steps.*; set enable_mask_update = True and"):
        other.squash_mask()
    assert density(twin[0]) > 0.5
    gradual.enable_mask_update = True
    gradual.step()
    with silence():
        gradual.squash_mask()
    assert density(model[0]) == 0.5


def test_lottery_rounds_that_are_missing_are_counted(model: nn.Sequential) -> None:
    ticket = gs.LotteryTicket("unstructured:0.75", rate=0.5, scope="tensor")
    assert ticket.rounds == 2
    after(ticket, model, 1)
    want = r"50.00% zeros after 1 of 2 rounds, not those of 'unstructured:0.75'"
    with pytest.warns(UserWarning, match=want):
        ticket.squash_mask()
    ticket = gs.LotteryTicket("unstructured:0.75", rate=0.5, scope="tensor")
    with silence():
        after(ticket, model, 2).squash_mask()
    assert density(model[0]) == 0.25


def test_movement_warns_as_other_ramps_do(model: nn.Sequential) -> None:
    movement = after(gs.Movement("2:4", begin_step=1, end_step=10), model, 2)
    with pytest.warns(UserWarning, match="after 2 of 10 steps"):
        movement.squash_mask()


def test_a_sparsifier_without_a_step_warns(model: nn.Sequential) -> None:
    magnitude = after(gs.Magnitude("2:4"), model, 0)
    with pytest.warns(UserWarning, match=r"step\(\) has selected no mask, so that it stays dense"):
        magnitude.squash_mask()
    assert density(model[0]) == 1.0
    with silence():
        after(gs.Magnitude("2:4"), model, 1).squash_mask()


def test_updates_that_were_always_off_warn(model: nn.Sequential) -> None:
    magnitude = gs.Magnitude("2:4")
    magnitude.enable_mask_update = False
    with pytest.warns(UserWarning, match="has selected no mask"):
        after(magnitude, model, 2).squash_mask()


def test_a_mask_written_by_a_subclass_may_drop_nothing(model: nn.Sequential) -> None:
    class Keeps(gs.Sparsifier):
        def update_mask(self, module: nn.Module, tensor_name: str, **group: Any) -> None:
            pass

    with silence():
        after(Keeps("2:4"), model, 1).squash_mask()


def test_masks_of_others_are_complete(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
        model[2].weight[:, ::2] = 0
    attach_masks(model)
    with silence():
        after(gs.GradualMagnitude("2:4", begin_step=1, end_step=10), model, 0).squash_mask()


def test_a_mask_that_drops_nothing_by_its_pattern_is_complete(model: nn.Sequential) -> None:
    with silence():
        after(gs.Magnitude("unstructured:0"), model, 1).squash_mask()


# --- Without calibration --------------------------------------------------------------------------


METHODS: list[Callable[[], OneShot]] = [
    lambda: gs.Wanda("2:4"),
    lambda: gs.SparseGPT("2:4"),
    lambda: gs.Best("2:4"),
]


@pytest.mark.parametrize("make", METHODS)
def test_squashing_without_calibration_is_refused(
    model: nn.Sequential, make: Callable[[], OneShot]
) -> None:
    method, before = make(), copy.deepcopy(model.state_dict())
    method.prepare(model)
    want = rf"^squash_mask: {type(method).__name__} has found no masks yet.* calibrate\(batches\)"
    with pytest.raises(RuntimeError, match=want):
        method.squash_mask()
    assert model[0].weight.shape == (16, 32)
    method.calibrate([torch.randn(64, 32)])  # Nothing has changed: it can still be made up for.
    with silence():
        method.squash_mask()
    assert density(model[0]) == 0.5
    assert list(model.state_dict()) == list(before)


def test_masks_come_off_after_calibration_failed(model: nn.Sequential) -> None:
    method, before = gs.SparseGPT("2:4"), copy.deepcopy(model.state_dict())
    method.prepare(model)
    with pytest.raises(ValueError, match="no batches"):
        method.calibrate([])
    with pytest.raises(RuntimeError, match=r"gossamer\.prune\.squash_masks\(model\)"):
        method.squash_mask()
    squash_masks(model)
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[name], value) for name, value in before.items())


# --- Calibrated twice -----------------------------------------------------------------------------


def test_a_second_calibration_says_what_its_errors_are_against(model: nn.Sequential) -> None:
    method = OneShot("2:4", ByWanda(), LeastSquares())
    method.prepare(model)
    batches = [torch.randn(256, 32)]
    first = method.calibrate(batches)
    assert [layer.zeros_before for layer in first.layers] == [0.0, 0.0]
    assert "before" not in str(first)
    second = method.calibrate(batches)
    assert second.mean_error < 1e-6 < first.mean_error
    assert [layer.zeros_before for layer in second.layers] == [0.5, 0.5]
    text = str(second)
    assert text.count("50% zeros before") == 2
    assert "2 of 2 weights were sparse before: their errors are against what they were" in text


def test_a_pruned_checkpoint_says_so_too(model: nn.Sequential) -> None:
    method = gs.Wanda("2:4")
    method.prepare(model, {"0": "2:4"})
    method.calibrate([torch.randn(256, 32)])
    method.squash_mask()
    method.prepare(model)
    report = method.calibrate([torch.randn(256, 32)])
    assert [layer.was_sparse for layer in report.layers] == [True, False]
    assert "\n1 of 2 weights were sparse before" in str(report)
    assert "1 of 2 weights were sparse before" in gs.report(model, calibration=report)


def test_scores_alone_can_be_calibrated_again(model: nn.Sequential) -> None:
    """Without corrected weights the dense ones are still there, and so is the error."""
    method, batches = gs.Wanda("2:4"), [torch.randn(256, 32)]
    method.prepare(model)
    first, second = method.calibrate(batches), method.calibrate(batches)
    assert [layer.error for layer in first.layers] == [layer.error for layer in second.layers]
    assert "before" not in str(second)


# --- Too little to fit to -------------------------------------------------------------------------


def test_a_fit_to_fewer_tokens_than_inputs_is_remarked(model: nn.Sequential) -> None:
    """Its error is next to nothing, on the tokens it saw."""
    method = gs.SparseGPT("2:4")
    method.prepare(model)
    report = method.calibrate([torch.randn(20, 32)])
    assert [layer.remarks for layer in report.layers] == [
        ["fitted to 20 tokens, fewer than its 32 inputs"],
        [],
    ]
    assert "fitted to 20 tokens, fewer than its 32 inputs" in str(report)


def test_a_score_fits_nothing(model: nn.Sequential) -> None:
    method = gs.Wanda("2:4")
    method.prepare(model)
    assert not any(layer.remarks for layer in method.calibrate([torch.randn(20, 32)]).layers)


# --- Refused before anything is run ---------------------------------------------------------------


@pytest.mark.parametrize("make", [gs.ALPS, gs.Best])
def test_admm_refuses_blocks_of_columns_when_it_is_made(make: Callable[..., OneShot]) -> None:
    with pytest.raises(ValueError, match="Admm: scope 'columns:4': 'row' or 'tensor' is accepted"):
        make("2:4", scope="columns:4")


def test_what_admm_says_to_do_works(model: nn.Sequential) -> None:
    method = OneShot(Transposable("2:4"), ByObs(), LeastSquares(), target="dense-target")
    method.prepare(model)
    assert 0 < method.calibrate([torch.randn(256, 32)]).mean_error < 0.5
