# SPDX-License-Identifier: BSD-3-Clause
"""Networks to prune, and what must not change where a call is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.prune import (
    Sparsifier,
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def data(count: int = 4) -> list[Tensor]:
    """Batches of what `net` takes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(24, 16, generator=generator) for _ in range(count)]


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What a failed call must not change: classes, names and their order, values, objects."""
    return {
        "classes": [type(module).__name__ for module in model.modules()],
        "parameters": [(name, id(p)) for name, p in model.named_parameters()],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert after["classes"] == before["classes"]
    assert after["parameters"] == before["parameters"]
    assert list(after["state"]) == list(before["state"])
    for name, value in before["state"].items():
        assert torch.equal(after["state"][name], value), name


class ReadOnce(Sparsifier):
    """Records what score() is given."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.seen: list[Tensor] = []

    def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        self.seen.append(weight)
        return weight.abs()


@dataclass
class Stripes:
    """Keeps every other input. A dataclass: it has no hash."""

    def __str__(self) -> str:
        return "stripes"

    def select(self, scores: Tensor) -> Tensor:
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, ::2] = True
        return mask
