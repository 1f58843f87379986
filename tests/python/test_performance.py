# SPDX-License-Identifier: BSD-3-Clause
"""The page of results: it is what the generator makes of the committed lines, and of right ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gossamer.bench import performance
from gossamer.bench.performance_gpu import TARGETS
from gossamer.bench.results import newest, read

ROOT = Path(__file__).resolve().parents[2]
LINE = {
    "suite": "cpu-decode",
    "kernel": "k",
    "machine": "m",
    "device": "cpu",
    "threads": 2,
    "dtype": "float32",
    "pattern": "unstructured:0.5",
    "sparsity": 0.5,
    "tokens": 1,
    "out": 8,
    "in": 16,
    "ms": 1.0,
    "dense_ms": 2.0,
    "dense_impl": "torch",
    "speedup": 2.0,
    "peers": {"torch_dense": 2.0},
    "bytes": 4_000_000,
    "bound_speedup": 2.0,
    "host_us": 4.0,
    "version": "1",
    "date": "2026-01-02T03:04:05Z",
    "read_gbs": 8.0,
}


def written(folder: Path, *changes: dict) -> Path:
    lines = [json.dumps({**LINE, **change}) for change in changes]
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_committed_page_is_what_the_results_make() -> None:
    made = performance.documents(ROOT / "bench/results")
    for name, text in made.items():
        assert (ROOT / "docs" / name).read_text() == text, "run make docs-performance"
    plots = {f"performance/{path.name}" for path in (ROOT / "docs/performance").iterdir()}
    assert plots == set(made) - {"performance.md"}


def test_a_page_holds_target_reached_rate_and_plot(tmp_path: Path) -> None:
    # 128 positions at 4 bytes of each kept value and a bit of each position, in 1 ms.
    rate = {"kernel": "linear_bitmask", "read_gbs": 128 * (0.5 * 4 + 1 / 8) / 1e6 / 0.5}
    more = {**rate, "pattern": "unstructured:0.7", "sparsity": 0.7, "speedup": 3.0}
    # How much of the weight another layout reads is not in its line.
    other = {"pattern": "unstructured:0.8", "sparsity": 0.8}
    made = performance.documents(written(tmp_path, rate, more, other))
    page = made["performance.md"]
    row = "| decode, 1 token, 8x16 | float32 | unstructured | 2 | 1.5 / 2.00 | 2.2 / 3.00 |"
    assert row in page
    assert "| layer | tokens | 0.5 | 0.7 | 0.8 |" in page
    assert "| 8x16 | 1 | 2.00, 50% | 2.00, 31% | 2.00 |" in page
    assert "3 cases, 0 below 0.97 of the dense layer that they replace." in page
    assert "2026-01-02" in page
    drawing = made["performance/m-cpu-decode-float32-2.svg"]
    assert drawing.startswith("<svg xmlns=")
    assert drawing.count("<circle") == 2


def test_decoding_has_a_row_for_each_layer_and_token_count(tmp_path: Path) -> None:
    lines = [
        {"tokens": 1, "layer": "a", "speedup": 2.0},
        {"tokens": 8, "layer": "a", "speedup": 4.0},
        {"tokens": 1, "layer": "b", "speedup": 8.0},
    ]
    page = performance.documents(written(tmp_path, *lines))["performance.md"]
    for what, reached in (("1 token, a", 2), ("8 tokens, a", 4), ("1 token, b", 8)):
        assert f"| decode, {what} | float32 | unstructured | 2 | 1.5 / {reached}.00 |" in page


def test_decoding_in_bfloat16_is_judged_by_what_the_machine_has(tmp_path: Path) -> None:
    line = {"dtype": "bfloat16", "pattern": "unstructured:0.7", "sparsity": 0.7, "layer": "a"}
    machines = ("x-amx", "x-avx512")
    lines = [{**line, "machine": machine} for machine in machines]
    lines.append({**line, "machine": "x-amx", "layer": "b, ONEDNN_MAX_CPU_ISA=AVX512"})
    page = performance.documents(written(tmp_path, *lines))["performance.md"]
    amx, plain = page[page.index("## x-amx") :].split("## x-avx512", 1)
    assert "| decode, AMX, 1 token, a | bfloat16 | unstructured | 2 | 1.5 / - | 2 / 2.00 |" in amx
    assert "| decode, no AMX, 1 token, b, ONEDNN_MAX_CPU_ISA=AVX512 | bfloat16 |" in amx
    row = "| decode, no AMX, 1 token, a | bfloat16 | unstructured | 2 | 1.5 / - | 2.1 / 2.00 |"
    assert row in plain
    assert "decode, AMX" not in plain


def test_tables_name_what_is_below_the_promise(tmp_path: Path) -> None:
    peers = {"torch_dense": 2.0, "openvino": 1.0}
    slow = {"layer": "a", "ms": 2.5, "dense_ms": 1.0, "peers": peers, "read_gbs": 0.0}
    noise = {**slow, "layer": "b", "ms": 2.064}
    page = performance.documents(written(tmp_path, slow, noise))["performance.md"]
    assert "| a | 1 | 0.40 (0.80) |" in page
    assert "2 cases, 1 below 0.97 of the dense layer that they replace: a unstructured:0.5" in page
    assert "2 below 0.97 of the quickest dense peer: a unstructured:0.5 float32, 1 tokens" in page
    assert "2 threads: 0.40x; b unstructured:0.5" in page
    gpu = {"suite": "gpu-24", "layer": "a", "peers": {"cublas": 2.0, "cusparselt": 1.5}}
    page = performance.documents(written(tmp_path, gpu, {**gpu, "tokens": 64}))["performance.md"]
    assert "| layer | 1 | 64 |" in page
    assert "| a | 2.00 / 1.50 | 2.00 / 1.50 |" in page


def test_eager_calls_of_gpus_have_tables_of_their_own(tmp_path: Path) -> None:
    gpu = {"suite": "gpu-24", "device": "cuda", "dtype": "bfloat16", "read_gbs": 0.0}
    first = {
        **gpu,
        "eager_ms": {"gossamer": 0.021, "cublas": 0.0234, "torch_semi_structured": 0.6},
        "eager_host_us": {"gossamer": 17.0, "cublas": 20.0, "torch_semi_structured": 598.0},
    }
    # Torch refuses this one.
    second = {
        **first,
        "tokens": 64,
        "eager_ms": {"gossamer": 1.5, "cublas": 1.25},
        "eager_host_us": {"gossamer": 18.0, "cublas": 17.5},
    }
    older = {**gpu, "layer": "older"}
    page = performance.documents(written(tmp_path, first, second, older))["performance.md"]
    order = "gossamer / cublas / torch_semi_structured"
    assert f"**bfloat16, eager calls in a loop**, milliseconds of one: {order}\n" in page
    assert "| 8x16 | 0.021 / 0.0234 / 0.6 | 1.5 / 1.25 / – |" in page
    assert f"**bfloat16, host time of an eager call**, microseconds: {order}\n" in page
    assert "| 8x16 | 17.0 / 20.0 / 598.0 | 18.0 / 17.5 / – |" in page
    assert "-3.0 to +0.5 µs of host time, median -1.2." in page
    assert page.count("| older |") == 2  # speed-ups and rates
    page = performance.documents(written(tmp_path, older))["performance.md"]
    assert "eager" not in page


def test_of_8_bit_layers_the_whole_call_is_compared_with_the_dense_layer(tmp_path: Path) -> None:
    names = {
        "gossamer": 9.0,
        "scaled_mm_rows": 8.0,
        "cublas_bfloat16": 20.0,
        "gossamer_layer": 22.0,
    }
    line = {"suite": "gpu-24", "dtype": "int8", "eager_ms": names, "eager_host_us": names}
    page = performance.documents(written(tmp_path, line))["performance.md"]
    assert "microseconds: gossamer / gossamer_layer / cublas_bfloat16\n" in page
    assert "| 8x16 | 9.0 / 22.0 / 20.0 |" in page
    assert "+2.0 to +2.0 µs of host time" in page


GPU = {
    "suite": "gpu-24",
    "device": "cuda",
    "dtype": "bfloat16",
    "pattern": "2:4",
    "kernel": "row",
    "read_gbs": 0.0,
    "out": 4096,
    "in": 4096,
    "tokens": 16,
    "peers": {"cublas": 2.0},
    "bytes": 18_874_368,
}


def test_times_of_graphs_are_forgiven_no_call_and_named_each(tmp_path: Path) -> None:
    slow = [{**GPU, "tokens": n, "ms": 0.0208, "dense_ms": 0.02, "peers": {}} for n in range(1, 8)]
    right = {**slow[0], "tokens": 8, "ms": 0.0206}
    forced = {**slow[0], "suite": "gpu-24-forced"}
    page = performance.documents(written(tmp_path, *slow, right, forced))["performance.md"]
    assert "8 cases, 7 below 0.97 of the dense layer that they replace: " in page
    for tokens in range(1, 8):
        assert f"4096x4096 2:4 bfloat16, {tokens} tokens: 0.962x" in page
    # Rows that no plan takes promise nothing.
    assert page.count("below 0.97 of the dense layer") == 1
    assert "quickest dense peer:" not in page, "on a GPU it is the layer that is replaced"


def test_lines_of_a_gpu_are_one_table_whatever_the_threads(tmp_path: Path) -> None:
    lines = [{**GPU, "threads": 4}, {**GPU, "threads": 16, "ms": 1.6}]
    made = performance.documents(written(tmp_path, *lines, {**GPU, "tokens": 64, "threads": 4}))
    page = made["performance.md"]
    assert page.count("**bfloat16**") == 1
    assert "| 4096x4096 | 1.25 | 2.00 |" in page
    assert "performance/m-gpu-24-bfloat16.svg" in made


def test_rates_shares_of_the_bound_and_sensors_have_tables(tmp_path: Path) -> None:
    sensed = {"clock_mhz": 1435.0, "power_w": 690.4}
    line = {**GPU, "ms": 0.01, "dense_ms": 0.018, "speedup": 1.8, **sensed}
    unbound = {**line, "tokens": 64, "bound_speedup": None, "clock_mhz": None}
    page = performance.documents(written(tmp_path, line, unbound))["performance.md"]
    # 2 · 16 · 4096² operations in 10 µs; 9/16 of 32 MiB, and 16 KiB a token, in 10 µs.
    assert "| 4096x4096 | 54 / 1914 / 90% | 215 / 1992 / – |" in page
    assert "| 4096x4096 | 1435 / 690 | – / 690 |" in page


def test_targets_of_gpus_stand_beside_what_was_reached(tmp_path: Path) -> None:
    few = {**GPU, "out": 28672, "in": 4096}
    lines = [
        {**few, "tokens": 1, "ms": 1.0, "speedup": 1.8},
        {**few, "tokens": 16, "ms": 1.0, "speedup": 1.749},
        {**few, "tokens": 65, "ms": 1.0, "speedup": 9.0},
        {**few, "tokens": 16, "speedup": 0.5, "layer": "unaligned X 28672x4096"},
    ]
    host = {"gossamer": 14.0, "cublas": 10.0}
    lines.append({**GPU, "speedup": 1.5, "eager_ms": host, "eager_host_us": host})
    page = performance.documents(written(tmp_path, *lines))["performance.md"]
    row = "| bfloat16, 1 to 64 tokens, 200 MB and more | cuBLAS | 1.75 | 1.75 | 1.77 | 1.80 |"
    assert f"{row} 1 of 2 |" in page
    assert "200 MB and more, cuBLAS: 28672x4096 (16: 1.749)" in page
    assert "| every shape | dense | 0.97 | 0.50 | 1.75 | 9.00 | 1 of 5 |" in page
    assert "every shape, dense: unaligned X 28672x4096 (16: 0.500)" in page
    assert "| µs at most | +3.0 | +4.0 | +4.0 | +4.0 | 1 of 1 |" in page
    assert "float8" not in page[page.index("Target beside") : page.index("Missed")]


def test_every_missed_target_of_the_h200_has_its_bound_explained() -> None:
    lines = [r for r in newest(read(ROOT / "bench/results")) if r.machine == "h200"]
    notes = (ROOT / "bench/results/bounds.md").read_text()
    notes = " ".join(notes[notes.index("### GPUs") :].split())
    explained = re.findall(r"\*\*(.*?)\*\*", notes)
    missed = {
        target.what
        for target in TARGETS
        for line in lines
        if target.selects(line)
        and (value := target.value(line)) is not None
        and target.misses(value)
    }
    assert len(missed) > 10
    for what in missed:
        parts = what.split(", ")
        assert any(all(part in heading for part in parts) for heading in explained), what


def test_notes_on_bounds_stand_before_the_tables(tmp_path: Path) -> None:
    (tmp_path / "bounds.md").write_text("## What bounds it\n")
    page = performance.documents(written(tmp_path, {}))["performance.md"]
    assert page.index("## What bounds it") < page.index("## m")


def test_the_newest_line_of_a_case_counts(tmp_path: Path) -> None:
    (kept,) = newest(read(written(tmp_path, {"ms": 1.0}, {"ms": 3.0})))
    assert kept.ms == 3.0
    older = {"ms": 4.0, "date": "2026-01-02T03:04:04Z"}
    (kept,) = newest(read(written(tmp_path, {"ms": 1.0}, {"ms": 3.0}, older)))
    assert kept.ms == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "m.jsonl, line 2: not JSON"),
        ("[]", "m.jsonl, line 2: a list"),
        (json.dumps({**LINE, "ms": "fast"}), "line 2: field 'ms' is 'fast'; float is accepted"),
        (json.dumps({**LINE, "ms": 0.0}), "line 2: 0.0 and 2.0 ms; times greater than 0"),
        (json.dumps({**LINE, "tokens": True}), "line 2: field 'tokens' is True"),
        (json.dumps({**LINE, "other": 1}), "line 2: field 'other' is not known"),
        (json.dumps({k: v for k, v in LINE.items() if k != "in"}), "field 'in' is missing"),
    ],
)
def test_a_broken_line_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with (written(tmp_path, {}) / "m.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is compared below)
        performance.documents(tmp_path)
    assert message in str(refused.value)
