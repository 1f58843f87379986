# SPDX-License-Identifier: BSD-3-Clause
"""Mixtures of experts: which rows can be paired, and which layers stay dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gossamer.prune import Best, OneShot, SparseGPT, Wanda
from gossamer.prune.capture import find_order
from gossamer.prune.experts import routers
from gossamer.prune.routing import RoutingWatch
from gossamer.prune.stages import StageWatch

SIZE = 8


class Mixture(nn.Module):
    """Each token goes to one of its experts; `way` is how its rows are picked and put back."""

    def __init__(self, way: str = "index", experts: int = 3, never: int | None = None) -> None:
        super().__init__()
        self.way, self.never = way, never
        self.before = nn.Linear(SIZE, SIZE)
        self.gate = nn.Linear(SIZE, experts)
        self.experts = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(experts))
        self.after = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        logits = self.gate(x)
        if self.never is not None:
            logits[:, self.never] = -torch.inf
        chosen = logits.argmax(-1)
        return self.after(x + getattr(self, f"_{self.way}")(x, chosen, logits))

    def _index(self, x: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = torch.where(chosen == index)[0]
            y.index_add_(0, rows, expert(x[rows]))
        return y

    def _mask(self, x: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
        y = torch.empty_like(x)
        for index, expert in enumerate(self.experts):
            y[chosen == index] = expert(x[chosen == index])
        return y

    def _sort(self, x: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
        order = chosen.argsort(stable=True)
        parts = x[order].split(torch.bincount(chosen, minlength=len(self.experts)).tolist())
        pairs = zip(self.experts, parts, strict=True)
        y = torch.cat([expert(part) for expert, part in pairs])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return y[back]

    def _fixed(self, x: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
        """Experts choose tokens, always as many."""
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = logits[:, index].topk(len(x) // 2).indices
            y = y.index_add(0, rows, expert(x.index_select(0, rows)))
        return y


def data(count: int = 4, rows: int = 64) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(rows, SIZE) for _ in range(count)]


def order_of(model: nn.Module, batches: list[Tensor]) -> set[str]:
    layers = {name: own for name, own in model.named_modules() if isinstance(own, nn.Linear)}
    with torch.no_grad():
        order = find_order(model, layers, batches, lambda own, x: own(x), StageWatch([]))
    return order.routed


@pytest.mark.parametrize("way", ["index", "mask", "sort", "fixed"])
def test_rows_that_a_router_picks_are_not_paired(way: str) -> None:
    torch.manual_seed(0)
    model = Mixture(way)
    assert order_of(model, data()) == {f"experts.{index}" for index in range(3)}
    method = Best("2:4")
    method.prepare(model)
    report = method.calibrate(data())
    errors = {layer.fqn: layer.target_error for layer in report.layers}
    assert errors.keys() == {"before.weight", "after.weight"} | {
        f"experts.{index}.weight" for index in range(3)
    }
    for layer in report.layers:
        is_expert = layer.fqn.startswith("experts")
        assert (layer.target_error is None) == is_expert, layer.fqn
        said = any("sparse-inputs: the two models route" in remark for remark in layer.remarks)
        assert said == is_expert, layer.fqn


def test_blocks_of_other_rows_are_not_tuned() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y = self.blocks[0](x)
            return self.blocks[1](y[: 16 + int((y > 0).sum()) % 32])

    torch.manual_seed(0)
    method = Best("2:4")
    method.prepare(Cut())
    report = method.calibrate(data())
    assert [block.name for block in report.blocks] == ["blocks.0"]
    assert report.not_alone == {
        "blocks.1": "the pruned model gives it other rows than the dense one"
    }


def test_rows_that_the_batch_picks_are_paired() -> None:
    """Padding is left out by the batch, in both models alike; so are pooled and first tokens."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = (nn.Linear(SIZE, SIZE) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            kept = torch.nonzero(x[:, 0] > 0)[:, 0]
            y = self.second(self.first(x)[kept])
            return self.last(y.sort(dim=-1).values[:1]) + self.last(y.amax(dim=0, keepdim=True))

    model = Padded()
    assert order_of(model, data()) == set()
    method = Best("2:4", reconstruction=None)
    method.prepare(model)
    report = method.calibrate(data())
    assert all(layer.target_error is not None for layer in report.layers)


def test_what_only_shapes_give_away_is_not_paired() -> None:
    """Indices that went through Python numbers cannot be followed, numbers of rows can."""

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y[: 16 + int((y > 0).sum()) % 32])

    torch.manual_seed(0)
    model = Counted()
    method = Best("2:4", reconstruction=None)
    method.prepare(model)
    first, second = method.calibrate(data()).layers
    assert first.target_error is not None
    assert second.target_error is None
    assert "sparse-inputs: the two models route other tokens to it" in second.remarks


def test_a_watch_forgets_what_is_gone() -> None:
    model = nn.Linear(SIZE, SIZE)
    watch = RoutingWatch(model)
    with watch.batch(), torch.no_grad():
        y = model(torch.randn(4, SIZE))
        rows = y[y[:, 0] > -10]
        assert watch.picked(rows)
        assert watch.picked(rows * 2)
        assert watch.picked(rows.view(2, -1))
        assert not watch.picked(y)
        assert not watch.picked(torch.zeros_like(rows))
        assert not watch.picked(torch.zeros(4, SIZE).index_add(0, torch.arange(len(rows)), rows))
        assert watch.picked(y.sort(dim=0).values)
        assert not watch.picked(y.sort(dim=1).values)
    assert not watch.picked(rows)


class Conditional(nn.Module):
    """Has an operator of higher order, or one that refuses to be watched."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.refuses = refuses

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](x)
        if not self.refuses:
            y = torch.cond(y.sum() > 0, lambda t: t + 1, lambda t: t - 1, (y,))
        elif _get_current_dispatch_mode() is not None:
            raise RuntimeError("not under a mode")
        return self.blocks[1](y)


@pytest.mark.parametrize("refuses", [False, True])
def test_operators_that_compile_themselves_or_refuse_to_be_watched(refuses: bool) -> None:
    torch.manual_seed(0)
    method = Best("2:4")
    method.prepare(Conditional(refuses))
    report = method.calibrate(data())
    assert [layer.tokens for layer in report.layers] == [256, 256]
    assert all(layer.target_error is not None for layer in report.layers)
    assert [block.name for block in report.blocks] == ["blocks.0", "blocks.1"]
    assert bool(report.remarks) == refuses
    for remark in report.remarks:
        assert remark.startswith("routers could not be watched, so that experts")
        assert "not under a mode" in remark
        assert remark in str(report)


def test_what_is_compiled_stays_compiled() -> None:
    frames = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal frames
        frames += 1
        return graph.forward

    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE))
    compiled = torch.compile(model, backend=backend)
    method = Wanda("2:4")
    method.prepare(compiled)
    method.calibrate(data())
    with torch.no_grad():
        compiled(data()[0])
    assert frames  # What runs after the pass that is watched is compiled as ever.


def test_scripted_parts_and_tables_picked_by_numbers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.ReLU())
    model = nn.Sequential(nn.Linear(SIZE, SIZE), scripted, nn.Linear(SIZE, 4))
    method = Best("2:4")
    method.prepare(model)
    assert method.calibrate(data()).remarks == []
    watch = RoutingWatch(model[0])
    with watch.batch(), torch.no_grad():
        y = model[0](torch.randn(4, SIZE)).flatten()
        rows = y[y > -10]
        first = torch.ops.aten.index(rows, [rows.argmax()])  # A single number has no rows.
        assert first.dim() == 0


# --- What stays dense -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["index", "mask"])
@pytest.mark.parametrize("make", [Wanda, SparseGPT, Best])
def test_an_expert_that_no_token_reaches(way: str, make: Callable[[str], OneShot]) -> None:
    """It is called with no rows at all, in every batch."""
    torch.manual_seed(0)
    model = Mixture(way, never=1)
    method = make("2:4")
    method.prepare(model)
    before = model.experts[1].weight.clone()
    report = method.calibrate(data())
    why = "no batch reaches it, while others of 'experts' are reached"
    assert report.left_dense == {
        "experts.1.weight": why,
        "gate.weight": "routes tokens to experts",
    }
    assert f"dense: {why}" in str(report)
    assert torch.equal(model.experts[1].weight, before)


def test_an_expert_that_is_never_called() -> None:
    class Skips(Mixture):
        def _index(self, x: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
            y = torch.zeros_like(x)
            for index in chosen.unique().tolist():
                y[chosen == index] = self.experts[index](x[chosen == index])
            return y

    model = Skips(never=2)
    method = Wanda("2:4")
    method.prepare(model)
    report = method.calibrate(data())
    assert "no batch reaches it" in report.left_dense["experts.2.weight"]
    assert len(report.layers) == 4


def test_an_expert_that_every_batch_reaches_and_few_tokens() -> None:
    class Rare(Mixture):
        def _index(self, x: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
            chosen = torch.zeros_like(chosen)
            chosen[logits[:, 0].argmax()[None]] = 1
            return super()._index(x, chosen, logits)

    for count, pruned in ((SIZE - 1, False), (SIZE, True)):
        model = Rare(experts=2)
        method = Wanda("2:4")
        method.prepare(model)
        report = method.calibrate(data(count))
        assert ("experts.1.weight" in {layer.fqn for layer in report.layers}) == pruned
        if not pruned:
            why = report.left_dense["experts.1.weight"]
            assert why == f"a router picks its inputs, and it saw {count} inputs of {SIZE}"


def test_layers_outside_of_lists_must_be_reached() -> None:
    model = nn.ModuleDict({"own": nn.Linear(SIZE, SIZE), "other": nn.Linear(SIZE, SIZE)})
    blocks = nn.ModuleList([model, nn.ModuleDict({"own": nn.Linear(SIZE, SIZE)})])

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.blocks = nn.Linear(SIZE, SIZE), nn.Linear(8, 8), blocks

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    method = Wanda("2:4")
    method.prepare(Half())
    with pytest.raises(ValueError, match=r"no batch reaches 'unused.weight', 'blocks.0.own.weig"):
        method.calibrate(data())


def test_stacks_of_experts_are_reported() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.router = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 4)
            self.stack = nn.Parameter(torch.randn(4, SIZE, SIZE))
            self.position = nn.Parameter(torch.randn(1, 16, SIZE))
            self.scale = nn.Parameter(torch.randn(SIZE, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.router(x).softmax(-1)
            return torch.einsum("te,ti,eio->to", weight, self.layer(x), self.stack)

    model = Stacked()
    method = Wanda("2:4")
    method.prepare(model)
    left = method.calibrate(data()).left_dense
    assert left.keys() == {"stack", "router.weight"}
    assert left["stack"].startswith("a stack of 4 matrices that no layer multiplies")


def test_what_a_router_is() -> None:
    model = Mixture(experts=4)
    model.shared_expert_gate = nn.Linear(SIZE, 1)
    model.gate_proj = nn.Linear(SIZE, 4)  # Of a gated MLP.
    model.down = nn.Linear(SIZE, 4)
    model.router = nn.Sequential(nn.Linear(SIZE, 16), nn.Linear(16, 4))
    assert routers(model) == ["gate", "shared_expert_gate", "router.1"]
    model.experts = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(5))
    assert routers(model) == ["shared_expert_gate"]
    named = Wanda("2:4")
    named.prepare(model, {"gate": "2:4"})  # Whoever names it has it pruned.
    assert [group["tensor_fqn"] for group in named.groups] == ["gate.weight"]
