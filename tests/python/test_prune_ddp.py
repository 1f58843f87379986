# SPDX-License-Identifier: BSD-3-Clause
"""Two processes that train one model with other data each have the same masks at every step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gossamer.prune import GradualMagnitude, Movement, Random, Sparsifier

RANKS = 2
STEPS = 6

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


def sparsifier_of(kind: str) -> Sparsifier:
    if kind == "gradual":
        return GradualMagnitude("unstructured:0.8", 1, 5)
    if kind == "movement":
        return Movement("2:4", 1, 5)
    return Random("2:4")


def train(rank: int, folder: str, kind: str) -> None:
    """One process: saves its masks after each step, and its weights at the end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    sparsifier = sparsifier_of(kind)
    sparsifier.prepare(model)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9)
    sparsifier.attach_optimizer(optimizer)
    torch.manual_seed(100 + rank)
    found: list[Any] = []
    for _ in range(STEPS):
        x = torch.randn(8, 16)
        optimizer.zero_grad()
        (parallel(x).square().mean() + parallel(x).sum()).backward()
        optimizer.step()
        sparsifier.step()
        found.append([sparsifier.mask(group).clone() for group in sparsifier.groups])
    state = copy.deepcopy(parallel.module.state_dict())
    torch.save({"masks": found, "state": state, "x": x}, f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves early can take gloo's threads of the other down
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["gradual", "movement", "random"])
def test_masks_are_equal_on_all_ranks(kind: str, tmp_path: Path) -> None:
    mp.spawn(train, (str(tmp_path), kind), RANKS)
    first, second = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)
    )
    assert not torch.equal(first["x"], second["x"])
    moved = 0
    last: list[torch.Tensor] = []
    for own, other in zip(first["masks"], second["masks"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
        moved += bool(last) and not all(torch.equal(a, b) for a, b in zip(own, last, strict=True))
        last = own
    assert moved >= 3
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
