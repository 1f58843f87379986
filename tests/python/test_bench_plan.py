# SPDX-License-Identifier: BSD-3-Clause
"""Suite `plan`, and engines of eight bits beside `cpu-linear`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._roofline import Roofline
from gossamer.bench import cpu_decode, cpu_linear, plan
from gossamer.bench.__main__ import main
from gossamer.bench.engines import describe, int8_engines
from gossamer.bench.plan import PLANNED, BrokenPromiseError, broken_promise
from gossamer.bench.subject import check_int8, make_subject
from gossamer.bench.suite import DTYPES, EXTENTS, Options

HAS_ONNXRUNTIME = all(importlib.util.find_spec(one) for one in ("onnx", "onnxruntime"))


def options(note: Callable[[str], None] = lambda text: None, **changes: object) -> Options:
    values: dict = {
        "extent": "quick",
        "rounds": 9,
        "filter": "",
        "cache_bytes": 1 << 20,
        "roofline": Roofline(1e11, 1e10),
        "host_us": 4.0,
        "progress": lambda text: None,
        "note": note,
    }
    return Options(**(values | changes))


def test_what_breaks_a_promise() -> None:
    row = PLANNED + "a"
    fine = {row: 1.0, "a": 0.8, "b": 0.95, "dense": 1.5}
    assert broken_promise(fine, row) == ""  # another time of the same row is no better choice
    assert "b 0.8000: 1.25x" in broken_promise({**fine, "b": 0.8}, row)
    assert "dense 0.9000: 0.90x" in broken_promise({**fine, "dense": 0.9}, row)
    # The call's 3 µs are forgiven, and no more.
    short = {row: 0.0128, "a": 0.01, "b": 0.01, "dense": 0.01}
    assert broken_promise(short, row) == ""
    assert "dense" in broken_promise({**short, row: 0.0135}, row)
    plain = {PLANNED + "dense": 1.0, "a": 0.8, "dense": 1.0}
    assert "a 0.8000: 1.25x" in broken_promise(plain, PLANNED + "dense")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_from_end_to_end(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a busy machine keeps the promises is not what is tested.
    monkeypatch.setattr(plan, "broken_promise", lambda times, planned: "")
    pattern = {"int8": "block:1x4:0.8"}.get(dtype, "unstructured:0.95")
    case = plan.Case("tiny", 256, 320, pattern, dtype, (1, 40))
    found = list(plan.run(options(), [case]))
    assert [record.tokens for record in found] == [1, 40]
    for record in found:
        assert json.loads(record.to_json())["suite"] == "plan"
        assert "dense" in record.peers
        rows = set(record.peers) - {"dense"}
        assert rows or record.tokens == 1  # every row may be too far behind dense on a tiny layer
        known = {row.name: row for row in gs.kernels()}
        assert all(known[name].runs_here for name in rows)
        assert {known[name].weight_dtype for name in rows} <= {dtype}
        assert record.kernel in {*known, "dense"}


def test_every_row_of_the_table_is_forced() -> None:
    subject = make_subject(64, 128, "2:4")
    forced = plan._forced_weights(subject, "float32")
    wanted = {
        row.name
        for row in gs.kernels()
        if row.operation == "linear"
        and row.weight_dtype == "float32"
        and row.runs_here
        and row.layout not in ("bsr", "fanin")
    }
    assert set(forced) >= wanted
    for name, weight in forced.items():
        assert weight.plan == [name] * 8


def test_the_command_fails_where_a_promise_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan, "cases", lambda extent, dtype=None: [CASE])
    arguments = ["plan", "--quick", "--threads", "1", "--json", str(tmp_path / "lines.jsonl")]
    monkeypatch.setattr(plan, "broken_promise", lambda times, planned: "it is worse")
    with pytest.raises(BrokenPromiseError, match=r"tiny 64x64.*it is worse"):
        list(plan.run(options(), [CASE]))
    assert main(arguments) == 1
    assert "broken promises, each measured twice" in capsys.readouterr().out
    monkeypatch.setattr(plan, "broken_promise", lambda times, planned: "")
    assert main(arguments) == 0
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [1, 1]


CASE = plan.Case("tiny", 64, 64, "unstructured:0.9", "float32", (1,))


def test_extents_grow() -> None:
    sizes = [len(plan.cases(extent)) for extent in EXTENTS]
    assert sizes == sorted(set(sizes))
    assert {case.dtype for case in plan.cases("normal")} == set(DTYPES)


def test_the_default_runs_hold_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(cpu_linear, "_run_collection", lambda options: iter(()))
    monkeypatch.setattr(
        cpu_linear, "measured", lambda options, *rest: asked.append(options.dtype) or []
    )
    list(cpu_linear.run(options(extent="normal")))
    assert asked == list(DTYPES)
    blocks = {pattern for case in cpu_linear.cases("normal", "int8") for pattern in case.patterns}
    assert {"block:1x4:0.9", "unstructured:0.9"} <= blocks
    assert {case.dtype for case in cpu_decode.cases("normal")} == set(DTYPES)


@pytest.mark.skipif(not HAS_ONNXRUNTIME, reason="onnx or onnxruntime is not installed")
def test_onnx_runtime_in_eight_bits() -> None:
    module, x = nn.Linear(64, 48, bias=False).eval(), torch.randn(9, 64)
    said: list[str] = []
    with torch.no_grad():
        found = int8_engines(module, x, said.append)
        assert not said
        assert set(found) == {"onnxruntime_int8"}

        def call(x: Tensor) -> Tensor:
            return found["onnxruntime_int8"]()

        check_int8("onnxruntime_int8", call, x, module.weight.detach(), coarse=True)
    assert describe("onnxruntime_int8").startswith("onnxruntime_int8, onnxruntime 1.")


def test_torch_is_named_for_its_own_eight_bits() -> None:
    assert describe("torch_int8").startswith("torch_int8, torch ")
