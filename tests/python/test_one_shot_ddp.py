# SPDX-License-Identifier: BSD-3-Clause
"""Two processes that calibrate one model, each with its own batches, are one calibration."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from gossamer.prune import Best, OneShot, Reconstruction, SparseGPT, Wanda
from gossamer.prune.capture import Order, common_order

RANKS = 2
SIZE = 16
COUNTS = (4, 5)
"""Batches of each rank: not as many."""

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo"
)


class Block(nn.Module):
    """With an expert that the first rank alone reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)
        self.experts = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.down(self.up(x).relu())
        y = self.experts[0](y)
        return y + self.experts[1](y) if len(x) == 48 else y


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.BatchNorm1d(SIZE), Block(), nn.Linear(SIZE, 4))


def batches_of(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1 + rank)
    rows = 48 if rank == 0 else 40
    return [torch.randn(rows, SIZE, generator=generator) for _ in range(COUNTS[rank])]


def method_of(kind: str) -> OneShot:
    if kind == "best":
        return Best("2:4", reconstruction=Reconstruction(2))
    if kind == "epochs":
        return Best("2:4", reconstruction=Reconstruction(2, held_out=False))
    return Wanda("2:4") if kind == "wanda" else SparseGPT("unstructured:0.6")


def run(rank: int, folder: str, kind: str, options: dict[str, Any]) -> None:
    """One process: saves weights, masks and errors."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    try:
        model, method = model_of(), method_of(kind)
        if kind == "other weights" and rank == 1:
            with torch.no_grad():
                model[2].up.weight[0, 0] += 1
        method.prepare(model)
        batches = batches_of(rank)
        if kind == "nan" and rank == 1:
            batches[2][0, 0] = torch.nan
        if kind == "one batch" and rank == 1:
            batches = batches[0]  # type: ignore[assignment]
        before = copy.deepcopy(model.state_dict())
        try:
            report = method.calibrate(batches, **options)
            found["layers"] = [(own.fqn, own.tokens, own.error) for own in report.layers]
            found["blocks"] = [(own.name, own.before, own.after) for own in report.blocks]
            found["left"] = report.left_dense
        except (RuntimeError, TypeError, ValueError) as error:
            found["error"] = f"{type(error).__name__}: {error}"
            found["undone"] = all(
                torch.equal(value, before[name]) for name, value in model.state_dict().items()
            )
        found["state"] = model.state_dict()
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def both(folder: Path, kind: str, **options: Any) -> list[dict[str, Any]]:
    (folder / "meet").unlink(missing_ok=True)
    mp.spawn(run, (str(folder), kind, options), RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def assert_equal(found: list[dict[str, Any]]) -> None:
    first, second = (own["state"] for own in found)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", ["wanda", "sweep", "best", "epochs"])
def test_ranks_have_the_same_masks_and_weights(kind: str, tmp_path: Path) -> None:
    found = both(tmp_path, kind, batchnorm=kind == "wanda")
    assert_equal(found)
    for key in ("layers", "blocks", "left"):
        assert found[0][key] == found[1][key]
    # Both ranks' inputs count: a process that has them all finds the same sums.
    model, method = model_of(), method_of(kind)
    method.prepare(model)
    batches = [*batches_of(0), *batches_of(1)]
    report = method.calibrate(batches, batchnorm=kind == "wanda")
    tokens = [(own.fqn, own.tokens) for own in report.layers]
    assert [own[:2] for own in found[0]["layers"]] == tokens
    if kind in ("wanda", "sweep"):
        for own, result in zip(found[0]["layers"], report.layers, strict=True):
            assert own[2] == pytest.approx(result.error, rel=1e-2)
        state = found[0]["state"]
        for name, value in model.state_dict().items():
            if value.dtype == torch.bool:  # Sums in another order may rank equals otherwise.
                assert (value == state[name]).float().mean() > 0.98, name
    else:
        assert [own[0] for own in found[0]["blocks"]] == ["0", "2", "3"]
        assert all(after <= before for _, before, after in found[0]["blocks"])


@pytest.mark.parametrize(
    ("kind", "own", "other"),
    [
        ("nan", "ValueError: '0.up.weight': its inputs hold NaN", "RuntimeError: .*rank 1 failed"),
        ("one batch", "TypeError: calibrate: batches is a Tensor", "RuntimeError: .*rank 1 failed"),
        ("other weights", "ValueError: .*'2.up.weight' of rank 1 is not that of rank 0", "Value"),
    ],
)
def test_where_one_rank_fails_all_do(tmp_path: Path, kind: str, own: str, other: str) -> None:
    found = both(tmp_path, kind)
    assert re.match(own, found[1]["error"])
    assert re.match(other, found[0]["error"])
    assert found[0]["undone"]
    assert found[1]["undone"]


def test_ranks_go_on_together(tmp_path: Path) -> None:
    """A step that one rank lacks is made again by all."""
    whole = both(tmp_path, "best", resume=str(tmp_path / "state"))
    last = sorted((tmp_path / "state" / "rank-1").glob("step-*.pt"))[-1]
    last.unlink()
    again = both(tmp_path, "best", resume=str(tmp_path / "state"))
    assert_equal(again)
    assert_equal([whole[0], again[0]])
    assert last.exists()


def test_a_rank_may_calibrate_by_itself(tmp_path: Path) -> None:
    found = both(tmp_path, "wanda", alone=True)
    assert [own[1] for own in found[0]["layers"]][:2] == [4 * 48, 4 * 48]
    assert [own[1] for own in found[1]["layers"]][:2] == [5 * 40, 5 * 40]


def test_orders_of_ranks_become_one() -> None:
    names = ["a", "b", "c", "d"]
    first = Order([["a"], ["b", "c"], ["d"]], {n: [1] for n in names}, dict.fromkeys(names, 3))
    second = Order(
        [["a"], ["c"]], {n: [int(n in "ac"), 1] for n in names}, {"a": 5, "b": 0, "c": 5, "d": 0}
    )
    second.rare, second.routed = {"b", "d"}, {"c"}
    merged = common_order([first, second], 1)
    assert merged.groups == [["a"], ["b"], ["c"], ["d"]]
    assert merged.samples == {"a": 8, "b": 3, "c": 8, "d": 3}
    assert (merged.rare, merged.routed) == ({"b", "d"}, {"c"})
    assert merged.calls == second.calls
    assert common_order([first, first], 0).groups == [["a"], ["b", "c"], ["d"]]
