# SPDX-License-Identifier: BSD-3-Clause
"""What makes two runs of calibration the same run, and what makes them others."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.prune import ByWanda, LayerProblem, OneShot
from gossamer.prune.fingerprint import digest

SCALE = 1.0


@dataclass
class Batch:
    x: Tensor
    extra: dict[str, Any] = field(default_factory=dict)


class EveryOther:
    """A pattern without a text of its own."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def select(self, scores: Tensor) -> Tensor:
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, self.first :: 2] = True
        return mask


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


def lower(power: float) -> Callable[[LayerProblem], None]:
    def part(problem: LayerProblem) -> None:
        problem.mask = problem.select(problem.weight.abs() ** power)

    return part


def scaled(problem: LayerProblem) -> None:
    problem.mask = problem.select(problem.weight.abs() * SCALE)


def net(relu: bool = True, stride: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.ReLU() if relu else nn.GELU()
    return nn.Sequential(nn.Conv2d(4, 8, 1, stride=stride), middle)


SAME: list[Callable[[], Any]] = [
    lambda: np.arange(6.0).reshape(2, 3),
    lambda: Batch(torch.ones(3), {"mask": None, "sizes": (1, 2)}),
    lambda: [EveryOther(), Slotted(3), {1, 2, "three"}, 1 + 2j, b"x", Path("x"), torch.float16],
    lambda: functools.partial(F.linear, bias=torch.ones(2)),
    lambda: [lower(2.0), EveryOther().select, torch.relu, len, torch.ops.aten.relu, OrderedDict],
    net,
    lambda: np.array([1, "a", None], dtype=object),
    lambda: torch.eye(3).to_sparse(),
    lambda: [..., logging.getLogger("gossamer"), lambda x: x[..., 0]],
]
OTHERS: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (lambda: np.zeros(3), lambda: np.ones(3)),
    (lambda: np.zeros(3), lambda: np.zeros(3, dtype=np.float32)),
    (lambda: np.zeros((2, 3)), lambda: np.zeros((3, 2))),
    (lambda: np.float32(1), lambda: np.float32(2)),
    (lambda: Batch(torch.ones(3)), lambda: Batch(torch.zeros(3))),
    (lambda: Batch(torch.ones(3), {"a": 1}), lambda: Batch(torch.ones(3), {"b": 1})),
    (lambda: EveryOther(0), lambda: EveryOther(1)),
    (lambda: Slotted(1), lambda: Slotted(2)),
    (lambda: functools.partial(F.gelu, approximate="none"), lambda: functools.partial(F.gelu)),
    (lambda: functools.partial(pow, 2), lambda: functools.partial(pow, 3)),
    (lambda: lower(1.0), lambda: lower(2.0)),
    (lambda: lambda x: x[..., 0], lambda: lambda x: x[..., 1]),
    (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    (lambda: lambda x, k=1: x + k, lambda: lambda x, k=2: x + k),
    (lambda: EveryOther(0).select, lambda: EveryOther(1).select),
    (lambda: torch.relu, lambda: torch.sigmoid),
    (net, lambda: net(relu=False)),
    (net, lambda: net(stride=2)),
    (lambda: {1, 2}, lambda: {1, 3}),
    (lambda: ["ab", "c"], lambda: ["a", "bc"]),
    (lambda: [[1], 2], lambda: [1, [2]]),
    (lambda: 1, lambda: True),
    (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
    (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.int32)),
]


@pytest.mark.parametrize("make", SAME)
def test_equal_contents_are_equal(make: Callable[[], Any]) -> None:
    assert digest(make(), "it") == digest(make(), "it")


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_other_contents_are_others(one: Callable[[], Any], other: Callable[[], Any]) -> None:
    assert digest(one(), "it") == digest(one(), "it")
    assert digest(one(), "it") != digest(other(), "it")


def test_globals_that_a_function_reads_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(scaled, "it")
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert digest(scaled, "it") != before


def test_the_code_of_a_module_counts() -> None:
    def module(sign: float) -> nn.Module:
        if sign > 0:

            class Own(nn.Linear):
                def forward(self, x: Tensor) -> Tensor:
                    return super().forward(x)
        else:

            class Own(nn.Linear):  # type: ignore[no-redef]
                def forward(self, x: Tensor) -> Tensor:
                    return -super().forward(x)

        torch.manual_seed(0)
        return Own(4, 4)

    assert digest(module(1), "it") == digest(module(1), "it")
    assert digest(module(1), "it") != digest(module(-1), "it")


def test_what_holds_itself() -> None:
    def ring() -> list[Any]:
        own: list[Any] = [1]
        own.append(own)
        return own

    assert digest(ring(), "it") == digest(ring(), "it")


@pytest.mark.parametrize("make", [lambda: (i for i in range(3)), lambda: open(__file__), object])  # noqa: SIM115
def test_what_has_no_contents_is_refused(make: Callable[[], Any]) -> None:
    match = r"it\['x'\]\[1\] is a \S+, whose contents cannot be compared; .* leave resume= out"
    with pytest.raises(TypeError, match=match):
        digest({"x": [1, make()]}, "it")


def test_fingerprints_are_the_same_in_every_process() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_fingerprint as t\n"
        "print([t.digest(make(), 'it') for make in t.SAME])"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    for seed in ("1", "2"):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str([digest(make(), "it") for make in SAME])


# --- Through calibrate ----------------------------------------------------------------------------


def calibrate(folder: Path, **change: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    parts = change.get("parts", [ByWanda()])
    method = OneShot(change.get("pattern", EveryOther()), *parts)
    method.note = change.get("note", 1)  # type: ignore[attr-defined]
    method.prepare(model)
    batches = change.get("batches", [Batch(torch.ones(4, 8).cumsum(1))])
    method.calibrate(batches, forward=change.get("forward", run), resume=folder)


def run(model: nn.Module, batch: Batch) -> Any:
    return model(batch.x)


CHANGES: dict[str, dict[str, Any]] = {
    "batches": {"batches": [Batch(torch.ones(4, 8))]},
    "forward": {"forward": lambda model, batch: model(batch.x * 2)},
    "method": {"pattern": EveryOther(1)},
    "method ": {"parts": [scaled]},
    "method  ": {"note": 2},
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_journal_of_another_run_is_refused(tmp_path: Path, what: str) -> None:
    calibrate(tmp_path)
    calibrate(tmp_path)  # The same once more, with a pattern that has no text.
    with pytest.raises(ValueError, match=rf"another run \(other {what.strip()}\)"):
        calibrate(tmp_path, **CHANGES[what])


def test_a_batch_without_contents_is_refused_before_anything_runs(tmp_path: Path) -> None:
    batch = Batch(torch.ones(4, 8), {"rows": iter([1])})
    with pytest.raises(TypeError, match=r"batches\[0\].extra\['rows'\] is a builtins.list_iter"):
        calibrate(tmp_path / "new", batches=[batch])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_damaged_step_is_named(tmp_path: Path, damage: bytes | None) -> None:
    calibrate(tmp_path)
    (step,) = tmp_path.glob("step-*.pt")
    if damage is None:
        torch.save({"layers": []}, step)
    else:
        step.write_bytes(damage)
    with pytest.raises(ValueError, match=r"step-00000.pt' is damaged .*; delete that file"):
        calibrate(tmp_path)
    step.unlink()
    calibrate(tmp_path)
