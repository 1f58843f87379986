# SPDX-License-Identifier: BSD-3-Clause
"""Sparsifiers that training steers: schedules, movement, supermasks, lottery tickets."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gossamer.prune import (
    GradualMagnitude,
    LotteryTicket,
    Magnitude,
    Movement,
    ScoredMask,
    Sparsifier,
    Supermask,
    attach_masks,
    density,
    squash_masks,
)
from gossamer.prune.schedule import (
    SCHEDULES,
    Schedule,
    register_schedule,
    scheduled_sparsity,
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, sparsifier: Sparsifier, steps: int, lr: float = 0.05) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(32, 8, generator=generator)
        loss = (model(x) - x[:, :4].abs()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsifier.step()


# --- Schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "half"),
    [("cubic", 0.875), ("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)],
)
def test_schedules(schedule: str, half: float) -> None:
    def at(step: int) -> float:
        return scheduled_sparsity(schedule, 0.2, 0.8, 10, 30, step)

    assert at(9) == 0.2
    assert at(30) == at(99) == 0.8
    assert at(20) == pytest.approx(0.2 + 0.6 * half)
    steps = [at(step) for step in range(35)]
    assert steps == sorted(steps)


def zeros_of_steps(schedule: str | Schedule, count: int = 5) -> list[float]:
    model = net()
    pruner = GradualMagnitude("unstructured:0.5", 0, 4, schedule=schedule)
    pruner.prepare(model)
    zeros = []
    for _ in range(count):
        pruner.step()
        zeros.append(1 - density(model))
    return zeros


def test_a_schedule_of_ones_own_and_one_that_is_not_there() -> None:
    def late(t: float) -> float:
        return t**4

    want = [0.5 * (t / 4) ** 4 for t in range(1, 5)]
    assert zeros_of_steps(late)[:4] == pytest.approx(want, abs=1 / 128)
    register_schedule("late", late)
    try:
        assert zeros_of_steps("late") == zeros_of_steps(late)
        register_schedule("late", late)  # Once more is no harm, another one is.
        with pytest.raises(ValueError, match="schedule 'late' is there already"):
            register_schedule("late", lambda t: t)
    finally:
        del SCHEDULES["late"]
    with pytest.raises(ValueError, match=r"schedule 'early': one of \['constant', 'cosine'"):
        GradualMagnitude("unstructured:0.5", 0, 4, schedule="early")
    with pytest.raises(TypeError, match="a function of t"):
        register_schedule("none", None)


def test_a_schedule_may_go_back() -> None:
    found = zeros_of_steps(lambda t: 1.0 if t < 0.5 else 0.5)
    assert found == pytest.approx([0.5, 0.25, 0.25, 0.5, 0.5], abs=1 / 128)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf"), None, "half"])
def test_what_a_schedule_may_not_give(value: object) -> None:
    with pytest.raises(ValueError, match=r"gives .* at t = 0: a number from 0 .* to 1"):
        GradualMagnitude("unstructured:0.5", 0, 4, schedule=lambda t: value)
    with pytest.raises(ValueError, match=r"gives .* at t = 0\.5"):
        GradualMagnitude("unstructured:0.5", 0, 4, schedule=lambda t: value if t == 0.5 else t)


def test_a_schedule_comes_back_with_the_state(tmp_path: Path) -> None:
    def late(t: float) -> float:
        return t**4

    def made(schedule: str | Schedule) -> GradualMagnitude:
        return GradualMagnitude("unstructured:0.5", 0, 4, schedule=schedule)

    pruner = made(late)
    pruner.prepare(net())
    pruner.step()
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = made(late)
    again.load_state_dict(state)
    again.prepare(net())
    assert all(group["schedule"] is late for group in again.groups)
    assert again.step_count == 1
    with pytest.raises(ValueError, match=r"late': one of \['constant'.*register_schedule"):
        made("cubic").load_state_dict(state)
    for schedule in (lambda t: t, lambda t: t * t):
        again.groups[0]["schedule"], other = schedule, again.groups[0]["schedule"]
        again.groups[1]["schedule"] = other
    with pytest.raises(ValueError, match="two schedules of this sparsifier are both called"):
        again.load_state_dict(again.state_dict())


# --- Gradients of weights that are dropped -------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_of_what_is_dropped_are_there_where_a_sparsifier_asks(dense: bool) -> None:
    class Asking(Magnitude):
        dense_gradients = dense

    torch.manual_seed(0)
    model, x = net(), torch.randn(16, 8)
    sparsifier = Asking("unstructured:0.5")
    sparsifier.prepare(model)
    sparsifier.step()
    group = sparsifier.groups[0]
    weight, mask = sparsifier.dense_weight(group), sparsifier.mask(group)
    plain = copy.deepcopy(model)
    squash_masks(plain)
    for own in (model, plain):
        own(x).square().mean().backward()
    want = plain[0].weight.grad  # Of the same product, with the zeros as weights.
    assert torch.equal(weight.grad[mask], want[mask])
    assert torch.equal(weight.grad[~mask], want[~mask] if dense else 0 * want[~mask])
    assert bool((want[~mask] != 0).any())
    assert (model[0].weight[~mask] == 0).all()
    # A sparsifier that takes the masks over has its own way.
    Magnitude("unstructured:0.5").prepare(model)
    weight.grad = None
    model(x).square().mean().backward()
    assert (weight.grad[~mask] == 0).all()


# --- Scores that are trained ----------------------------------------------------------------------


def test_scores_get_the_gradient_of_every_weight() -> None:
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = ScoredMask(torch.rand(3, 5) > 0.5)
    grad = torch.randn(3, 5, dtype=torch.float64)
    masked = mask(weight)
    assert torch.equal(masked, torch.where(mask.mask, weight, 0))
    masked.backward(grad)
    assert mask.scores.grad is not None
    torch.testing.assert_close(mask.scores.grad, (grad * weight).detach().float())
    assert torch.equal(weight.grad, torch.where(mask.mask, grad, 0))


def test_movement_adds_up_what_the_paper_adds_up() -> None:
    model = net()
    pruner = Movement("unstructured:0.5", 0, 10)
    pruner.prepare(model)
    weight = pruner.dense_weight(pruner.groups[0])
    (scores, _) = pruner.scores()
    want = torch.zeros_like(scores)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(10):
        before = weight.detach().clone()
        seen: list[Tensor] = []
        masked = model[0].weight
        masked.register_hook(seen.append)
        loss = nn.functional.linear(torch.randn(16, 8), masked).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        want -= 0.1 * seen[0] * before
        pruner.step()
    torch.testing.assert_close(scores.detach(), want)
    order = torch.ops.gossamer.select_masks([want], "unstructured:0.5", "tensor")[0]
    assert (order == pruner.mask(pruner.groups[0])).float().mean() > 0.98
    assert density(model) == 0.5


def test_supermasks_train_the_mask_alone() -> None:
    model = net()
    dense = copy.deepcopy(model)
    sparsifier = Supermask("unstructured:0.5")
    sparsifier.prepare(model)
    sparsifier.step()
    first = sparsifier.mask(sparsifier.groups[0]).clone()
    train(model, sparsifier, 60, lr=1.0)
    assert not torch.equal(first, sparsifier.mask(sparsifier.groups[0]))
    assert torch.equal(sparsifier.dense_weight(sparsifier.groups[0]), dense[0].weight)
    sparsifier.squash_mask()
    kept = model[0].weight != 0
    assert torch.equal(model[0].weight, torch.where(kept, dense[0].weight, 0))
    assert model[0].weight.requires_grad
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in dense.named_parameters()
    ]


@pytest.mark.parametrize(
    "make", [lambda: Movement("2:4", 0, 3), lambda: Supermask("2:4")], ids=["Movement", "Supermask"]
)
def test_scores_survive_in_the_state_of_the_model(make: Callable[[], Sparsifier]) -> None:
    model = net()
    sparsifier = make()
    sparsifier.prepare(model)
    train(model, sparsifier, 4)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = attach_masks(net(), state)
    again.load_state_dict(state)
    x = torch.randn(5, 8)
    assert torch.equal(again(x), model(x))
    other = make()
    other.prepare(again)
    other.step()
    sparsifier.step()
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    copied, pruner = copy.deepcopy((model, sparsifier))
    train(copied, pruner, 2)
    train(model, sparsifier, 2)
    for (name, a), b in zip(model.state_dict().items(), copied.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_masks_without_scores_are_refused() -> None:
    model = net()
    Magnitude("2:4").prepare(model)
    sparsifier = Movement("2:4", 0, 3)
    sparsifier.prepare(model)
    with pytest.raises(ValueError, match=r"'0.weight' has a live mask without scores"):
        list(sparsifier.scores())


def test_default_weights_do_not_include_scores() -> None:
    model = net()
    Movement("2:4", 0, 3).prepare(model)
    other = Magnitude("2:4")
    other.prepare(model)
    assert [group["tensor_fqn"] for group in other.groups] == ["0.weight", "2.weight"]


# --- Lottery tickets ------------------------------------------------------------------------------


def test_a_ticket_drops_a_fifth_of_what_is_left_and_rewinds() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    ticket = LotteryTicket("unstructured:0.6", rate=0.25)
    assert ticket.rounds == math.ceil(math.log(0.4) / math.log(0.75)) == 4
    ticket.prepare(model)
    noop = Magnitude("unstructured:0")
    noop.prepare(nn.Linear(2, 2))
    train(model, noop, 3)
    ticket.remember()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    zeros, masks = [], []
    for _ in range(ticket.rounds + 1):
        train(model, noop, 5)
        trained = [ticket.dense_weight(group).abs() for group in ticket.groups]
        before = [ticket.mask(group).clone() for group in ticket.groups]
        ticket.step()
        zeros.append(1 - density(model))
        masks.append([ticket.mask(group).clone() for group in ticket.groups])
        for old, new in zip(before, masks[-1], strict=True):
            assert not (new & ~old).any()
        alive = torch.cat([w[m] for w, m in zip(trained, masks[-1], strict=True)])
        gone = [w[o & ~m] for w, o, m in zip(trained, before, masks[-1], strict=True)]
        if len(torch.cat(gone)):
            assert alive.min() >= torch.cat(gone).max()
        for name, value in model.state_dict().items():
            if ".0." not in name:  # Everything but the masks' own state.
                assert torch.equal(value, first[name]), name
    want = [0.25, 1 - 0.75**2, 1 - 0.75**3, 0.6, 0.6]
    assert zeros == pytest.approx(want, abs=1 / 192)


def test_a_ticket_goes_on_from_its_state() -> None:
    model = net()
    ticket = LotteryTicket("unstructured:0.5")
    ticket.prepare(model)
    ticket.step()
    saved, weights = ticket.state_dict(), copy.deepcopy(model.state_dict())
    again = attach_masks(net(), weights)
    again.load_state_dict(weights)
    other = LotteryTicket("unstructured:0.5")
    other.load_state_dict(saved)
    other.prepare(again)
    for one, pruner in ((model, ticket), (again, other)):
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.mul_(torch.linspace(0.5, 2, parameter.numel()).view(parameter.shape))
        pruner.step()
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_tickets_need_a_sparsity_that_can_grow() -> None:
    with pytest.raises(ValueError, match="whose sparsity can grow"):
        LotteryTicket("2:4")
    with pytest.raises(ValueError, match="rate 0: a number above 0"):
        LotteryTicket("unstructured:0.5", rate=0)
    with pytest.raises(ValueError, match="lacks 'remembered'"):
        LotteryTicket("unstructured:0.5").load_state_dict(Magnitude("2:4").state_dict())
    with pytest.raises(RuntimeError, match="remember"):
        LotteryTicket("unstructured:0.5").remember()
