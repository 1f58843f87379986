# SPDX-License-Identifier: BSD-3-Clause
"""Calibration that is killed and started again, keeps inputs elsewhere, renews BatchNorm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import ByWanda, LeastSquares, OneShot, Reconstruction
from gossamer.prune.inputs import Inputs
from gossamer.prune.kept_calls import Kept

SCRIPT = """
import os, signal, sys
import torch
from torch import nn
import gossamer as gs
from gossamer.prune import Reconstruction

folder, kill_at, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Rare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        return torch.cat([x[:-1], self.inner(x[-1:])]) if len(x) > 40 else x


model = nn.Sequential(Block(), Rare(), Block(), nn.Linear(16, 4))
batches = [torch.randn(48, 16), torch.randn(40, 16), torch.randn(48, 16)]
seen = []


def progress(result, number, count):
    seen.append(number)
    if number == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


method = gs.Best("2:4", reconstruction=Reconstruction(epochs=3))
method.prepare(model)
report = method.calibrate(batches, resume=folder or None, progress=progress)
state = {name: value.clone() for name, value in model.state_dict().items()}
kept = [[r.fqn, r.error, r.target_error, r.zeros] for r in report.layers]
blocks = [[b.name, b.before, b.after] for b in report.blocks]
torch.save([state, kept, blocks, report.left_dense, seen], out)
"""


def start(folder: Path | str, kill_at: int, out: Path) -> Any:
    """Runs the script; None where it was killed."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(kill_at), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if kill_at:
        assert done.returncode == -9, done.stderr
        return None
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, kill_at: int) -> None:
    whole = start("", 0, tmp_path / "whole")
    start(tmp_path / "state", kill_at, tmp_path / "none")
    state, layers, blocks, left, seen = start(tmp_path / "state", 0, tmp_path / "resumed")
    assert state.keys() == whole[0].keys()
    for name, value in whole[0].items():
        assert torch.equal(state[name], value), name
    assert [layers, blocks, left] == whole[1:4]
    assert "1.inner.weight" in left
    assert whole[4] == [1, 2, 3, 4, 5]
    assert seen == whole[4][kill_at - 1 :]  # the layer at which it was killed had not been kept


def model_and_batches() -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(3)
    layers = [nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)]
    return nn.Sequential(*layers), [torch.randn(64, 16) for _ in range(3)]


def calibrate(pattern: str, batches: list[Tensor], scale: float = 1.0, **options: Any) -> OneShot:
    model, _ = model_and_batches()
    with torch.no_grad():
        model[0].weight.mul_(scale)
    method = OneShot(pattern, ByWanda(), LeastSquares())
    method.prepare(model)
    method.calibrate(batches, **options)
    return method


def test_a_finished_run_is_taken_over_whole(tmp_path: Path) -> None:
    _, batches = model_and_batches()
    first = calibrate("2:4", batches, resume=tmp_path)
    seen: list[int] = []
    again = calibrate(
        "2:4", batches, resume=tmp_path, progress=lambda result, number, count: seen.append(number)
    )
    assert seen == []
    assert first.model is not None
    assert again.model is not None
    for a, b in zip(
        first.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("other", ["method", "batches", "model"])
def test_the_state_of_another_run_is_refused(tmp_path: Path, other: str) -> None:
    _, batches = model_and_batches()
    calibrate("2:4", batches, resume=tmp_path)
    pattern = "unstructured:0.5" if other == "method" else "2:4"
    data = [batch + 1 for batch in batches] if other == "batches" else batches
    with pytest.raises(ValueError, match=rf"another run \(other {other}\).*delete it"):
        calibrate(pattern, data, 2.0 if other == "model" else 1.0, resume=tmp_path)


def test_a_header_of_something_else_is_refused(tmp_path: Path) -> None:
    _, batches = model_and_batches()
    for text in ("{", "[1]"):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(ValueError, match=r"calibration.json' is not what calibrate wrote; del"):
            calibrate("2:4", batches, resume=tmp_path)


def test_a_step_that_was_half_written_is_made_again(tmp_path: Path) -> None:
    _, batches = model_and_batches()
    whole = calibrate("2:4", batches, resume=tmp_path)
    last = sorted(tmp_path.glob("step-*.pt"))[-1]
    half = last.with_suffix(".new")
    half.write_bytes(last.read_bytes()[:100])
    last.unlink()
    again = calibrate("2:4", batches, resume=tmp_path)
    assert whole.model is not None
    assert again.model is not None
    assert torch.equal(whole.model[3].weight, again.model[3].weight)
    assert last.exists()
    assert not half.exists()


def test_what_is_kept_comes_back_to_its_device() -> None:
    calls: Kept[Any] = Kept(torch.device("meta"))
    x = torch.randn(3)
    calls.append(((x, 1), {"mask": None, "bias": [x]}))
    assert calls._values[0][0][0].device.type == "cpu"
    (args, kwargs), *_ = calls
    assert (args[0].device.type, kwargs["bias"][0].device.type) == ("meta", "meta")
    assert (args[1], kwargs["mask"]) == (1, None)
    assert calls[:1][0][0][0].device.type == "meta"


def test_offloading_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    _, batches = model_and_batches()
    asked: list[bool] = []
    memory = Inputs.memory

    def spy(self: Inputs) -> torch.device | None:
        asked.append(memory(self) is not None)
        return memory(self)

    monkeypatch.setattr(Inputs, "memory", spy)
    results = []
    for offload in (False, True):
        model, _ = model_and_batches()
        method = gs.Best("2:4", reconstruction=Reconstruction(epochs=2))
        method.prepare(model)
        method.calibrate(batches, offload=offload)
        assert asked
        assert set(asked) == {offload}
        asked.clear()
        results.append(model[3].weight.detach().clone())
    assert torch.equal(*results)


def test_batchnorm_is_recalibrated_on_request() -> None:
    _, batches = model_and_batches()
    before = calibrate("2:4", batches).model
    after = calibrate("2:4", batches, batchnorm=True).model
    assert before is not None
    assert after is not None
    assert torch.equal(before[1].running_mean, torch.zeros(32))
    with torch.no_grad():
        wanted = torch.stack([after[0](batch).mean(0) for batch in batches]).mean(0)
    torch.testing.assert_close(after[1].running_mean, wanted)


def test_batchnorm_of_a_model_without_any_is_refused_before_anything_happens() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    method = gs.Wanda("2:4")
    method.prepare(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="no BatchNorm"):
        method.calibrate([torch.randn(4, 8)], batchnorm=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
