# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark: its clock, its bound, its file, and one small case from end to end."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gossamer as gs
from gossamer._roofline import Roofline, measure_roofline
from gossamer.bench import (
    Record,
    append,
    contest,
    convert,
    cpu_conv,
    cpu_decode,
    cpu_linear,
    cpu_model,
    dlmc,
    host,
    networks,
    solvers,
    timing,
)
from gossamer.bench.__main__ import SUITES, main
from gossamer.bench.engines import ENGINES, engines
from gossamer.bench.performance_tables import tables
from gossamer.bench.record import OPTIONAL
from gossamer.bench.subject import check, check_int8, csr_calls, make_subject
from gossamer.bench.suite import EXTENTS, Options, measured, now

FIELDS = {
    "suite": str,
    "kernel": str,
    "machine": str,
    "device": str,
    "threads": int,
    "dtype": str,
    "pattern": str,
    "sparsity": float,
    "tokens": int,
    "out": int,
    "in": int,
    "ms": float,
    "dense_ms": float,
    "dense_impl": str,
    "speedup": float,
    "peers": dict,
    "bytes": int,
    "bound_speedup": float,
    "host_us": float,
    "version": str,
    "date": str,
}
"""Name and type of every field of a line, in order."""


PEERS = {"torch_dense", "torch_dense_channels_last", "torch_csr", *ENGINES}


def options(**changes) -> Options:
    values = {
        "extent": "quick",
        "rounds": 9,
        "filter": "",
        "cache_bytes": 1 << 20,
        "roofline": Roofline(1e11, 1e10),
        "host_us": 4.0,
        "progress": lambda text: None,
    }
    return Options(**{**values, **changes})


def check_line(line: dict) -> None:
    assert [name for name in line if name not in OPTIONAL] == list(FIELDS)
    for name, kind in FIELDS.items():
        assert type(line[name]) is kind, name
    assert line["machine"] == gs.machine().name
    assert line["device"] == "cpu"
    assert line["version"] == gs.__version__
    assert line["ms"] > 0
    assert line["dense_ms"] > 0
    assert line["speedup"] == pytest.approx(line["dense_ms"] / line["ms"], rel=1e-3)
    dense = [ms for name, ms in line["peers"].items() if name != "torch_csr"]
    assert "torch_dense" in line["peers"]
    assert line["dense_ms"] == min(dense)
    assert all(ms > 0 for ms in line["peers"].values())
    time.strptime(line["date"], "%Y-%m-%dT%H:%M:%SZ")


def test_contest_sees_the_slower_one() -> None:
    times = contest({"a": lambda: time.sleep(0.004), "b": lambda: time.sleep(0.001)}, rounds=9)
    assert [len(rounds) for rounds in times.rounds_ms.values()] == [9, 9]
    assert times.median_ms["a"] >= 4.0
    assert times.least_ms["b"] >= 1.0
    assert times.least_ms["a"] <= times.median_ms["a"]
    assert times.speedup("a", "b") == times.median_ms["a"] / times.median_ms["b"]


def test_contest_alternates() -> None:
    seen: list[str] = []
    contest({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 4, call_seconds=0)
    turns = "".join(seen[12:])  # after three warm-up turns of each; a turn is two calls
    assert turns == "aabbbbaaaabbbbaa"


def test_contest_settles_between_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("gossamer.bench.timing._settle", lambda: seen.append("pause"))
    calls = {name: partial(seen.append, name) for name in "abc"}
    contest(calls, 1, call_seconds=0, pools={"b": "its own"})
    turns = [name for name, _ in itertools.groupby(seen)]
    assert turns[-5:] == ["a", "pause", "b", "pause", "c"]
    seen.clear()
    contest(calls, 2, call_seconds=0)
    assert "pause" not in seen


def test_threads_that_spin_are_waited_for() -> None:
    stop = time.monotonic() + 0.1

    def spin() -> None:
        while time.monotonic() < stop:
            pass

    spinning = threading.Thread(target=spin)
    spinning.start()
    timing._settle()
    assert time.monotonic() > stop
    spinning.join()


@pytest.mark.parametrize(("calls", "rounds"), [({}, 9), ({"a": int}, 0)])
def test_contest_refuses(calls, rounds) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        contest(calls, rounds)


def test_bound_where_computing_binds_and_where_reading_does() -> None:
    roofline = Roofline(flops=1e12, bandwidth=1e10)
    many = roofline.bound_speedup(100_000, 4096, 4096, density=0.1, packed_bytes=1 << 20)
    assert many == pytest.approx(10, rel=0.2)
    computing = Roofline(flops=1e6, bandwidth=1e12)
    assert computing.bound_speedup(8, 512, 512, 0.1, 1) == pytest.approx(10)
    reading = Roofline(flops=1e18, bandwidth=1e9)
    moved = 4 * (1024 + 1024)
    expected = (4 * 1024**2 + moved) / (500_000 + moved)
    assert reading.bound_speedup(1, 1024, 1024, 0.1, 500_000) == pytest.approx(expected)


def test_roofline_is_measured() -> None:
    roofline = measure_roofline(1 << 20)
    assert 1e8 < roofline.flops < 1e15
    assert 1e7 < roofline.bandwidth < 1e13


def record(**changes) -> Record:
    (found,) = list(host.run(options(filter="2:4")))
    return Record(**{**found.__dict__, **changes})


def test_append_keeps_what_is_there(tmp_path) -> None:
    file = tmp_path / "new" / "out.jsonl"
    append(record(tokens=1), file)
    append(record(tokens=2), file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [1, 2]


def test_append_names_a_file_that_cannot_be(tmp_path) -> None:
    with pytest.raises(OSError, match="directory"):
        append(record(), tmp_path)


@pytest.mark.parametrize("pattern", ["unstructured:0.9", "2:4"])
@pytest.mark.parametrize("tokens", [1, 32])
def test_a_case_from_end_to_end(pattern: str, tokens: int) -> None:
    case = cpu_linear.Case("tiny", 96, 128, (pattern,), tokens)
    with torch.inference_mode():
        (found,) = list(cpu_linear.run(options(), [case]))
    line = json.loads(found.to_json())
    check_line(line)
    assert (line["out"], line["in"], line["tokens"]) == (96, 128, tokens)
    assert {"torch_dense", "torch_csr"} <= set(line["peers"]) <= PEERS
    assert line["sparsity"] == pytest.approx(0.5 if pattern == "2:4" else 0.9, abs=1e-3)
    rows = {kernel.name for kernel in gs.kernels()} | {"dense"}
    assert line["kernel"] in rows


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_from_end_to_end(dtype: str, monkeypatch) -> None:
    patterns = ("unstructured:0.9", *(f"{block}:0.9" for block in cpu_linear.BLOCKS[dtype]))
    case = cpu_linear.Case("tiny", 96, 128, patterns, 32, dtype)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with torch.inference_mode():
        found = list(cpu_linear.run(options(), [case]))
    peers = {"torch_dense", "torch_int8"} if dtype == "int8" else {"torch_dense"}
    assert [record.pattern for record in found] == list(patterns)
    for record in found:
        line = json.loads(record.to_json())
        check_line(line)
        assert line["dtype"] == dtype
        assert set(line["peers"]) - {"onnxruntime_int8"} == peers
        assert line["layer"] == "tiny, ONEDNN_MAX_CPU_ISA=AVX2"
    (first, *_) = cpu_linear.cases("quick", dtype)
    assert first.patterns == patterns
    assert all(case.dtype == dtype for case in cpu_decode.cases("normal", dtype))


def test_wrong_products_of_eight_bits_are_not_timed() -> None:
    x, w = torch.randn(8, 64), torch.randn(16, 64)
    check_int8("right", lambda x: x @ w.T, x, w)
    with pytest.raises(RuntimeError, match=r"wrong on \[8, 64\].*more than int8 allows"):
        check_int8("wrong", lambda x: x @ w.T + 3.0, x, w)


@pytest.mark.parametrize(("kernel", "last"), [(1, False), (3, True)])
def test_a_convolution_from_end_to_end(kernel: int, last: bool) -> None:
    filters = cpu_conv.Filters(16, 24, kernel, 2, 9)
    case = cpu_conv.Case("tiny", filters, (0.5, 0.9), 3, last)
    with torch.inference_mode():
        found = list(cpu_conv.run(options(), [case]))
    lines = [json.loads(record.to_json()) for record in found]
    assert [line["sparsity"] for line in lines] == pytest.approx([0.5, 0.9], abs=1e-2)
    rows = {row.name for row in gs.kernels() if row.operation == "conv2d"} | {"dense"}
    for line in lines:
        check_line(line)
        assert line["tokens"] == 3 * 25
        assert line["layer"] == str(case)
        assert line["layer"].endswith("channels_last") == last
        assert line["kernel"] in rows
        assert (line["out"], line["in"]) == (24, 16 * kernel**2)
        assert {"torch_dense", "torch_dense_channels_last"} <= set(line["peers"]) <= PEERS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_decode_from_end_to_end(dtype: str) -> None:
    case = cpu_decode.Case("tiny", 96, 128, dtype, (0.5, 0.9), (1, 8))
    with torch.inference_mode():
        found = list(cpu_decode.run(options(cache_bytes=1 << 16), [case]))
    lines = [json.loads(record.to_json()) for record in found]
    assert [line["tokens"] for line in lines] == [1, 1, 8, 8]
    for line in lines:
        check_line(line)
        assert line["dtype"] == dtype
        assert line["read_gbs"] == 10.0


@pytest.mark.parametrize("pattern", convert.PATTERNS)
def test_conversions_from_end_to_end(pattern: str) -> None:
    case = convert.Case(96, pattern, torch.bfloat16)
    lines = [json.loads(record.to_json()) for record in convert.run(options(), [case])]
    assert [line["kernel"] for line in lines] == ["pack_", "unpack_", "pack", "unpack"]
    for line in lines:
        assert [name for name in line if name not in OPTIONAL] == list(FIELDS)
        assert line["speedup"] == pytest.approx(line["dense_ms"] / line["ms"], rel=1e-3)
        assert list(line["peers"].values()) == [line["dense_ms"]]
        assert line["machine"] == gs.machine().name
    assert [list(line["peers"]) for line in lines] == [["copy"], ["copy"], ["clone"], ["clone"]]


@pytest.mark.parametrize("what", [*solvers.METHODS, solvers.TRANSPOSABLE])
def test_solvers_from_end_to_end(what: str) -> None:
    with torch.inference_mode():  # As the command does.
        (record,) = solvers.run(options(), [solvers.Case(what, 64, 32)])
    line = json.loads(record.to_json())
    assert [name for name in line if name not in OPTIONAL] == list(FIELDS)
    assert (line["kernel"], line["suite"], line["machine"]) == (what, "solvers", gs.machine().name)
    assert line["speedup"] == pytest.approx(line["dense_ms"] / line["ms"], rel=1e-3)
    assert what in tables([record], "solvers")


def test_targets_of_solvers_are_measured_on_a_processor() -> None:
    cases = solvers.cases("normal", "cpu")
    sides = {case.what: case.side for case in cases}
    assert sides["SparseGPT"] == sides[solvers.TRANSPOSABLE] == 4096
    assert {case.device for case in cases} == {"cpu"}
    assert {case.device for case in solvers.cases("normal", "cuda")} == {"cuda"}
    assert {case.device for case in convert.cases("normal", "cuda")} == {"cuda"}


def test_transposable_masks_are_timed_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [
            next(solvers.run(options(), [solvers.Case(what, 64, 32)])).threads
            for what in (solvers.TRANSPOSABLE, "Wanda")
        ]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found == [1, 2]


def test_long_calls_run_few_rounds(monkeypatch) -> None:
    monkeypatch.setattr(solvers, "LONG_SECONDS", 0.01)
    calls = {"long": 0, "short": 0}

    def call(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    found = solvers._medians(
        {name: partial(call, name, 0.02 if name == "long" else 0.001) for name in calls}, 9
    )
    assert calls == {"long": 1 + solvers.LONG_ROUNDS, "short": 1 + solvers.LONG_ROUNDS}
    assert found["long"] >= 20 > found["short"] >= 1


def test_lines_of_a_gpu_and_of_a_processor_lie_apart(tmp_path, monkeypatch) -> None:
    (record,) = solvers.run(options(), [solvers.Case("Wanda", 64, 32)])
    both = [record, replace(record, machine="a-gpu", device="cuda")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SUITES, "solvers", lambda options: iter(both))
    assert main(["solvers", "--json", "auto", "--threads", "1"]) == 0
    for written in both:
        (line,) = (tmp_path / f"bench/results/{written.machine}.jsonl").read_text().splitlines()
        assert json.loads(line)["device"] == written.device


def test_a_dense_copy_is_not_counted() -> None:
    subject = make_subject(48, 64, "unstructured:0.9")
    packed = gs.SparseWeight.from_dense(subject.dense)
    both = gs.SparseWeight.from_packed(packed.packed, dense=subject.dense.clone())
    subject.module.weight = torch.nn.Parameter(both, requires_grad=False)
    assert subject.held_bytes == packed.packed.numel() < subject.dense.numel() * 4


@pytest.mark.parametrize("suite", ["cpu-model", "cpu-stacks"])
def test_a_network_from_end_to_end(suite: str) -> None:
    def small(folder):
        return torch.nn.Sequential(networks.Encoder(1, 32, 4)).eval()

    case = cpu_model.Case("tiny", small, (2, 5, 32), (0.5, 0.9))
    run = cpu_model.run_models if suite == "cpu-model" else cpu_model.run_stacks
    with torch.inference_mode():
        lines = [json.loads(record.to_json()) for record in run(options(), [case])]
    assert [line["sparsity"] for line in lines] == pytest.approx([0.5, 0.9], abs=1e-2)
    for line in lines:
        check_line(line)
        assert line["suite"] == suite
        assert line["kernel"].endswith("of 6 packed")


def test_a_residual_network_has_the_sizes_of_the_checkpoints() -> None:
    model = networks.ResNet(20).eval()
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_network_without_its_data_is_left_out_with_a_note() -> None:
    said: list[str] = []
    case = cpu_model.Case("r", lambda folder: torch.nn.Linear(2, 2), (1, 2), needs_data=True)
    assert list(cpu_model.run_models(options(note=said.append), [case])) == []
    assert said == ["r is left out: no --data names the folder of trained networks"]


def test_rotating_weights_overflow_the_cache_and_give_the_product() -> None:
    weight, x = torch.randn(8, 16), torch.randn(2, 16)
    call = cpu_decode.rotation(weight, 512, 1024, x)
    for _ in range(12):
        assert torch.equal(call(), F.linear(x, weight))


def test_wrong_convolutions_are_not_timed() -> None:
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 3, 3)
    y = F.conv2d(x.double(), weight.double(), None, 1, 1).float()
    cpu_conv.check("right", y, x, weight, 1, 1)
    with pytest.raises(RuntimeError, match="wrong on"):
        cpu_conv.check("wrong", y * (1 + 1e-3), x, weight, 1, 1)


def test_a_file_of_the_collection_is_read() -> None:
    kept = dlmc.parse("a", "2, 4, 3\n0 1 3 \n2 0 3 \n")
    assert kept.tolist() == [[False, False, True, False], [True, False, False, True]]


@pytest.mark.parametrize(
    "text",
    ["", "2, 4\n0 1\n1", "2, 4, 3\n0 1 3\n2 0 4\n", "2, 4, 3\n0 3\n2 0 3\n", "1, 2, 1\n0 1\nx\n"],
)
def test_a_broken_file_of_the_collection_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"broken\.smtx"):
        dlmc.parse("broken.smtx", text)


@pytest.mark.parametrize("suite", [cpu_conv, cpu_decode, cpu_linear])
def test_each_extent_is_larger_than_the_one_before(suite) -> None:
    sizes = [len(suite.cases(extent)) for extent in EXTENTS]
    assert sizes == sorted(set(sizes))


def test_what_is_not_measured_is_said() -> None:
    said: list[str] = []
    late = options(deadline=time.monotonic() - 1, note=said.append)
    extents = {"quick": ["a", "b"], "full": ["a", "b", "c"]}
    assert list(measured(late, extents.__getitem__)) == []
    assert said == [
        "quick: 2 cases; --full has 1 more",
        "the time was up, not measured: a; b",
    ]
    assert list(measured(options(filter="b", note=said.append), extents.__getitem__)) == ["b"]


def test_engines_compute_the_same_or_say_why_not() -> None:
    module, x = torch.nn.Linear(8, 4).eval(), torch.randn(3, 8)
    said: list[str] = []
    with torch.inference_mode():
        found = engines(module, x, said.append)
        for call in found.values():
            assert torch.allclose(torch.from_numpy(call()), module(x), atol=1e-5)
    assert set(found) <= set(ENGINES)
    assert all("does not take part" in line for line in said)


def test_wrong_results_are_not_timed() -> None:
    weight, x = torch.randn(16, 32), torch.randn(4, 32)
    check("right", lambda x: F.linear(x, weight), x, weight)
    with pytest.raises(RuntimeError, match="wrong on"):
        check("wrong", lambda x: F.linear(x, weight) * (1 + 1e-3), x, weight)
    with pytest.raises(RuntimeError, match="nan on"):
        check("nan", lambda x: F.linear(x, weight) * torch.nan, x, weight)


def test_csr_computes_the_same() -> None:
    subject = make_subject(24, 40, "unstructured:0.5")
    x = torch.randn(5, 40)
    with torch.inference_mode():
        for call in csr_calls(subject.dense, x):
            check("csr", lambda x, call=call: call(), x, subject.dense)
    assert subject.density == pytest.approx(0.5, abs=0.01)


def test_now_is_utc() -> None:
    assert time.strptime(now(), "%Y-%m-%dT%H:%M:%SZ")


def test_command_writes_lines(tmp_path, capsys) -> None:
    file = tmp_path / "out.jsonl"
    assert main(["host", "--json", str(file), "--threads", "1"]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["pattern"] for line in lines] == list(host.PATTERNS)
    for line in lines:
        check_line(line)
        assert line["threads"] == 1
    shown = capsys.readouterr().out
    assert "speed-up" in shown
    assert str(file) in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["host", "--threads", "0"],
        ["host", "--threads", "x"],
        ["host", "--rounds", "3"],
        ["host", "--quick", "--full"],
        ["host", "--dtype", "int8"],
        ["host", "--device", "cpu"],
        ["cpu-linear", "--dtype", "float64"],
        ["host", "--data", "no/such/folder"],
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gossamer.bench", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert all(name in done.stdout for name in SUITES)
