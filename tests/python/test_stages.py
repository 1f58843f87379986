# SPDX-License-Identifier: BSD-3-Clause
"""Calibration block by block gives what whole forward passes give, in fewer of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.prune import SparseGPT, calibration


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(
        self, x: Tensor, shift: Tensor | None = None, cache: list[Any] | None = None
    ) -> tuple[Tensor]:
        y = x + self.down(F.relu(self.up(x)))
        if cache is not None:
            cache.append(y)
        return (y if shift is None else y + shift,)


class Chain(nn.Module):
    """Blocks one after the other, with something before and after; `mode` breaks the chain."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        shift = x.mean(dim=0)
        cache: dict[str, list[Any]] = {"seen": []}
        for index, block in enumerate(self.blocks):
            if self.mode == "cache":
                (x,) = block(x, cache=_Cache(cache["seen"]))
            elif self.mode == "new shift":
                (x,) = block(x, x.mean(dim=0))
            elif self.mode == "keyword":
                (x,) = block(x=x, shift=shift)
            else:
                (x,) = block(x, shift)
            if self.mode == "between" and index == 1:
                x = x * 2
            if self.mode == "in place" and index == 1:
                x.mul_(2)
            if self.mode == "twice" and index == 2:
                (x,) = block(x, shift)
        return self.head(x)


class _Cache(list):  # type: ignore[type-arg]
    """Something that is no plain list, as caches of keys and values are."""


def sequence(inplace: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace)),
        nn.Sequential(nn.ReLU(inplace), nn.Conv2d(8, 8, 3), nn.ReLU(inplace)),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


MODES = {
    "chain": 1 + 2 * (1 + 1 + 1),
    "keyword": 1 + 2 * (1 + 1 + 1),
    "between": 1 + 2 * (1 + 2 + 1),
    "in place": 1 + 2 * (1 + 2 + 1),
    "new shift": 1 + 2 * (1 + 4 + 1),
    "twice": None,
    "cache": None,
}
"""Forward passes a batch: one to see the order; then, for both models, embed, each start of a
chain, and head. None: more."""


def pruned(model: nn.Module, batches: list[Tensor]) -> tuple[dict[str, Tensor], int]:
    passes = 0

    def forward(model: nn.Module, batch: Tensor) -> Any:
        nonlocal passes
        passes += 1
        return model(batch)

    model = copy.deepcopy(model)
    sparsifier = SparseGPT("unstructured:0.5", target="dense-target")
    sparsifier.prepare(model)
    sparsifier.calibrate(batches, forward=forward)
    return dict(model.state_dict()), passes


def compare(
    model: nn.Module, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    got, passes = pruned(model, batches)
    monkeypatch.setattr(calibration, "find_stages", lambda model, layers: [])
    want, whole = pruned(model, batches)
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    return passes, whole


@pytest.mark.parametrize("mode", MODES)
def test_blocks_give_what_the_whole_model_gives(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [torch.randn(32, 6) for _ in range(3)]
    passes, whole = compare(Chain(mode), batches, monkeypatch)
    assert whole == 3 * (1 + 2 * 10)
    expected = MODES[mode]
    if expected is None:
        assert passes <= whole
    else:
        assert passes == 3 * expected


@pytest.mark.parametrize("inplace", [False, True])
def test_sequences_are_chains_of_their_members(
    inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    passes, whole = compare(sequence(inplace).eval(), batches, monkeypatch)
    assert whole == 2 * (1 + 2 * 3)
    assert passes <= 2 * (1 + 2 * 1)


def test_batches_are_not_changed_by_layers_that_write_in_place() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Linear(8, 8))
    batch = torch.randn(16, 8)
    first, _ = pruned(model, [batch.clone()])
    again, _ = pruned(model, [batch.clone().relu()])
    assert torch.equal(
        first["2.parametrizations.weight.0.mask"], again["2.parametrizations.weight.0.mask"]
    )
