# SPDX-License-Identifier: BSD-3-Clause
"""The plan of 2:4 layers on a GPU; the rule itself is tested on any machine."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer import _layout_argument, _packing, _plan_cuda, _plan_cuda_rule
from gossamer._tune_cuda import Measured
from gossamer.weight import SparseWeight

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KERNELS = [f"kernel{i}" for i in range(len(_plan_cuda.BUCKETS))]


def times(**changed: tuple[float, float]) -> list[list[float]]:
    """Packed twice as fast as dense everywhere but at the token counts named `t<count>`."""
    counts = [tokens for bucket in _plan_cuda.BUCKETS for tokens in bucket]
    return [list(changed.get(f"t{tokens}", (1.0, 2.0))) for tokens in counts]


# --- The rule -------------------------------------------------------------------------------------


def test_faster_everywhere_is_packed() -> None:
    plan = _plan_cuda.decide(times(), KERNELS, "default", 10)
    assert plan.sparse
    assert [choice["kernel"] for choice in plan.choices] == KERNELS
    assert plan.dense_buckets == [None] * 8


def test_slower_somewhere_is_plain_where_memory_is_short() -> None:
    plan = _plan_cuda.decide(times(t128=(1.0, 0.9)), KERNELS, "low", 33_600_000)
    assert not plan.sparse
    assert "128 tokens (0.90x)" in plan.reason
    assert "33.6 MB" in plan.reason
    assert {choice["kernel"] for choice in plan.choices} == {"dense"}


@pytest.mark.parametrize("memory", ["default", "speed"])
def test_slower_somewhere_runs_dense_there(memory: str) -> None:
    slow = times(t256=(1.0, 0.5), t512=(1.0, 1.2), t1=(1.0, 0.96))
    plan = _plan_cuda.decide(slow, KERNELS, memory, 33_600_000)
    assert plan.sparse
    assert plan.dense_buckets == ["dense"] * 3 + [None, None, "dense", None, None]
    assert "33.6 MB" in plan.reason
    assert plan.choices[6]["tokens"] == 256
    assert plan.choices[6]["milliseconds"] == 0.5
    assert plan.choices[7]["kernel"] == KERNELS[7]
    assert dense_counts(plan) == {1, 8, 129, 160, 161, 256}


COUNTS = [tokens for bucket in _plan_cuda.BUCKETS for tokens in bucket]


def dense_counts(plan: _plan_cuda.CudaPlan) -> set[int]:
    """Those of the timed token counts that run dense."""
    bits = plan.bits([""] * len(KERNELS), {}, 0)
    return {tokens for tokens in COUNTS if _layout_argument.runs_dense(bits, tokens)}


@pytest.mark.parametrize(
    ("slow", "bucket", "dense"),
    [
        ({9}, 3, {9, 16}),
        ({32}, 3, {17, 32}),
        ({64}, 4, {33, 64}),
        ({128}, 4, {65, 128}),
        ({257}, 5, {129, 160, 257, 320}),
        ({129}, 5, {129, 160, 257, 320}),
        ({256}, 5, {129, 160, 161, 256}),
        ({512}, 5, {257, 320, 321, 512}),
        ({256, 320}, 5, {129, 160, 161, 256, 257, 320}),
        ({160, 512}, 5, {129, 160, 257, 320, 321, 512}),
        ({161, 512}, 5, {129, 160, 161, 256, 257, 320, 321, 512}),
        ({1025}, 6, {513, 640, 1025, 1280}),
        ({1024}, 6, {513, 640, 641, 1024}),
        ({8192}, 7, {2049, 8192}),
    ],
)
def test_parts_of_a_bucket_of_the_header_run_dense(
    slow: set[int], bucket: int, dense: set[int]
) -> None:
    found = times(**{f"t{tokens}": (1.0, 0.5) for tokens in slow})
    plan = _plan_cuda.decide(found, KERNELS, "speed", 10)
    assert plan.dense_buckets == ["dense" if i == bucket else None for i in range(8)]
    assert dense_counts(plan) == dense
    kernels = [choice["kernel"] for choice in plan.choices for _ in range(2)]
    assert {n for n, kernel in zip(COUNTS, kernels, strict=True) if kernel == "dense"} == dense


def test_what_is_dense_between_the_timed_counts() -> None:
    plan = _plan_cuda.decide(times(t1025=(1.0, 0.5), t64=(1.0, 0.5)), KERNELS, "speed", 10)
    bits = plan.bits([""] * len(KERNELS), {}, 0)
    dense = {n for n in range(1, 3000) if _layout_argument.runs_dense(bits, n)}
    assert dense == {*range(33, 65), *range(513, 641), *range(1025, 1281)}


def test_a_gain_in_a_part_that_runs_dense_is_none() -> None:
    even = {f"t{tokens}": (1.0, 1.0) for bucket in _plan_cuda.BUCKETS for tokens in bucket}
    begins = even | {"t129": (1.0, 2.0), "t160": (1.0, 2.0), "t256": (1.0, 0.5)}
    plan = _plan_cuda.decide(times(**begins), KERNELS, "speed", 10)
    assert not plan.sparse
    first = plan.choices[5]
    assert first["kernel"] == "dense"
    assert first["reason"].endswith("; dense, as the rest of its part is")


def test_what_timing_cannot_tell_apart_is_no_loss_and_no_gain() -> None:
    nearly = [[1.0, 0.98]] * len(times())
    assert not _plan_cuda.decide(nearly, KERNELS, "speed", 10).sparse
    nearly[0] = [1.0, 1.06]
    assert _plan_cuda.decide(nearly, KERNELS, "default", 10).sparse


def test_a_cache_that_says_nonsense_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    monkeypatch.setattr(_plan_cuda, "_key", lambda dense, bias: "layer")
    monkeypatch.setattr(_plan_cuda, "_measured", {})
    calls = []
    answer = Measured(times(), [*KERNELS[:-1], ""])

    def measure() -> Measured:
        calls.append(1)
        return answer

    def ask() -> Measured:
        _plan_cuda._measured.clear()
        return _plan_cuda._remembered(torch.empty(0), False, measure)

    sound = {"times": answer.times, "rows": answer.rows}
    file = tmp_path / "cuda_plans.json"
    wrong = (
        [[1.0, 2.0]], times(), "x", {}, {"times": times()}, {**sound, "rows": KERNELS[1:]},
        {**sound, "rows": [1] * len(KERNELS)}, {**sound, "times": [[1.0, -2.0]] * len(times())},
    )  # fmt: skip
    texts = ["", "[]", "{", *(json.dumps({"layer": entry}) for entry in wrong)]
    for text in texts:
        file.write_text(text)
        assert ask() == answer
        assert ask() == answer
    assert len(calls) == len(texts)
    assert json.loads(file.read_text()) == {"layer": sound}


def test_what_left_a_row_out_is_not_kept_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    monkeypatch.setattr(_plan_cuda, "_key", lambda dense, bias: "layer")
    monkeypatch.setattr(_plan_cuda, "_measured", {})
    answer = Measured(times(), [""] * len(KERNELS), ["kernel0 is left out: it is wrong"])
    assert _plan_cuda._remembered(torch.empty(0), False, lambda: answer) == answer
    assert not list(tmp_path.iterdir())


def weight_of(out: int, inputs: int) -> SparseWeight:
    w = torch.randn(out, inputs, dtype=torch.bfloat16)
    w.view(out, inputs // 4, 4)[..., ::2] = 0
    return SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")


def test_dense_buckets_survive_in_the_header() -> None:
    w = torch.randn(64, 128, dtype=torch.bfloat16)
    w.view(64, 32, 4)[..., ::2] = 0
    packed = torch.ops.gossamer.pack(w, None, "2:4", "nm24_tiles", False, "w")
    planned = torch.ops.gossamer.with_plan(
        packed, json.dumps([None, "dense", "dense"] + [None] * 5)
    )
    weight = SparseWeight.from_packed(planned, dense=w)
    assert weight._facts.dense_buckets == 0b110
    assert copy.deepcopy(weight)._facts.dense_buckets == 0b110
    assert SparseWeight.from_packed(packed)._facts.dense_buckets == 0


def test_the_argument_says_what_the_header_runs_dense() -> None:
    facts = weight_of(64, 128)._facts
    gpu = torch.device("cuda")
    ends = [1, 4, 8, 32, 128, 512, 2048, 8192]
    for bucket, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        argument = facts._replace(dense_buckets=1 << bucket).layout_argument(gpu)
        dense = {n for n in range(1, 8193) if _layout_argument.runs_dense(argument, n)}
        # One part serves all up to eight tokens.
        assert dense == set(range(1, 9) if end <= 8 else range(begin + 1, end + 1))
    argument = facts._replace(dense_buckets=255).layout_argument(gpu)
    assert all(_layout_argument.runs_dense(argument, n) for n in range(1, 3000))


@pytest.mark.parametrize("codes", [(15,) * 10, (0, 15) * 5, (15, 3, 0) * 3 + (15,), (1,) * 10])
@pytest.mark.parametrize("quarters", [(), (True,), (False, True), (True, True)])
def test_a_call_looks_up_what_the_plan_says(
    codes: tuple[int, ...], quarters: tuple[bool, ...]
) -> None:
    plan = _layout_argument.plan_bits(codes, quarters)
    sizes = _layout_argument.dense_sizes(plan, 0)
    expected = [_layout_argument.runs_dense(plan, tokens) for tokens in range(1, 8193)]
    assert [looked_up(sizes, tokens) for tokens in range(1, 8193)] == expected


@pytest.mark.parametrize("dense_buckets", [0, 1, 0b1010, 0b11, 0b10000000, 255])
def test_a_call_looks_up_what_the_header_says(dense_buckets: int) -> None:
    sizes = _layout_argument.dense_sizes(0, dense_buckets)
    for bucket, (begin, end) in enumerate(
        itertools.pairwise([0, 1, 4, 8, 32, 128, 512, 2048, 8192])
    ):
        expected = bool(dense_buckets >> bucket & 1)
        assert {looked_up(sizes, n) for n in range(begin + 1, end + 1)} == {expected}


def looked_up(sizes: tuple[int, int], tokens: int) -> bool:
    """As `_weight_products.linear_as_torch` asks."""
    whole, quarter = sizes
    size = (tokens - 1).bit_length()
    return bool(whole >> size & 1 or (quarter >> size & 1 and tokens - 1 >> size - 3 == 4))


def test_the_argument_tells_dtypes_of_one_size_apart() -> None:
    gpu = torch.device("cuda")
    plain = {}
    for dtype in (torch.bfloat16, torch.float16):
        values = weight_of(64, 128).to_dense().to(dtype)
        weight = SparseWeight.from_dense(values, "2:4", layout="nm24_tiles")
        plain[dtype] = weight._facts.layout_argument(gpu)
        everything = _layout_argument.plan_bits([15] * 10, [True, True], 3)
        assert weight._facts._replace(plan=everything).layout_argument(gpu) == (
            plain[dtype] | everything
        )
    told = 1 << _layout_argument.BFLOAT16_SHIFT | 1 << _layout_argument.FLOAT16_SHIFT
    assert plain[torch.bfloat16] & told == 1 << _layout_argument.BFLOAT16_SHIFT
    assert plain[torch.float16] & told == 1 << _layout_argument.FLOAT16_SHIFT
    assert plain[torch.bfloat16] & ~told == plain[torch.float16] & ~told


class FakeGpu:
    """Answers what the plan asks of a GPU; `answer` are the times, or what measuring raises."""

    def __init__(
        self, answer: list[list[float]] | Measured | Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measure(*args: object) -> Measured:
            if isinstance(answer, Exception):
                raise answer
            return answer if isinstance(answer, Measured) else Measured(answer, [""] * len(KERNELS))

        monkeypatch.setenv("GOSSAMER_CACHE", "off")
        monkeypatch.setattr(_plan_cuda, "_measured", {})
        monkeypatch.setattr(_plan_cuda, "_measure", measure)
        monkeypatch.setattr(_plan_cuda, "_key", lambda dense, bias: "layer")
        monkeypatch.setattr(_plan_cuda, "no_kernels", lambda: None)
        monkeypatch.setattr(_plan_cuda, "_kernel", lambda x, out: f"sm90_{x.shape[0]}")

    def decide(self, layer: nn.Linear, memory: str = "default") -> _packing.Decision:
        """What sparsify_ decides for the layer, were it on a GPU."""
        return _packing._decide_cuda(
            layer.weight.detach(), "layer", _packing.Request(memory=memory), False, True, None
        )


def cpu_layer() -> nn.Linear:
    """A 2:4 layer where the tests run; tiles are packed the same on the CPU."""
    layer = nn.Linear(256, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.view(128, 64, 4)[..., ::2] = 0
    return layer


@pytest.fixture
def planned_as_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """`decide_packed` plans tiles as on a GPU."""

    def plan(
        weight: SparseWeight, values: torch.Tensor, request: _packing.Request, *, bias: bool
    ) -> _packing.Decision:
        report = _packing.plain_report("") | {"packed": True, "pattern": "2:4"}
        return _packing._plan_on_cuda(weight, values, request, bias, report)

    monkeypatch.setattr(_packing, "decide_packed", plan)


@pytest.mark.usefixtures("planned_as_tiles")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cudaStreamBeginCapture: operation not permitted\nmore"),
        ZeroDivisionError(),
    ],
)
def test_a_comparison_that_fails_leaves_the_layer_dense_with_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = FakeGpu(error, monkeypatch).decide(cpu_layer())
    assert decision.weight is None
    assert not decision.report["packed"]
    assert decision.report["plan"] == []
    first = (str(error).splitlines() or ["ZeroDivisionError"])[0]
    reason = decision.report["reason"]
    assert reason.startswith(f"plain: comparing it with dense failed: {first}; sparsify it again")
    assert 'plan="model"' in reason


@pytest.mark.usefixtures("planned_as_tiles")
def test_a_plan_reaches_the_weight_and_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(times(t256=(1.0, 0.5)), monkeypatch)
    layer = cpu_layer()
    plain = gpu.decide(layer, "low")
    assert plain.weight is None
    assert "256 tokens (0.50x)" in plain.report["reason"]
    kept = gpu.decide(layer)
    assert kept.weight is not None
    assert kept.weight._facts.dense_buckets == 1 << 5
    assert kept.weight.dense is not None
    assert torch.equal(kept.weight.dense, layer.weight)
    assert [bucket["kernel"] for bucket in kept.report["plan"]] == [
        "sm90_8", "sm90_16", "sm90_32", "sm90_64", "sm90_128", "dense", "dense", "sm90_320",
        "sm90_512", "sm90_640", "sm90_1024", "sm90_1280", "sm90_2048", "sm90_8192",
    ]  # fmt: skip
    reasons = [bucket["reason"] for bucket in kept.report["plan"]]
    assert reasons[0].endswith(" tokens; sm90_1 at 1 tokens")
    assert "sm90_" not in reasons[5]  # it runs dense
    assert [bucket["tokens"] for bucket in kept.report["plan"]][5:7] == ["129–160", "161–256"]
    layer.weight = nn.Parameter(kept.weight, requires_grad=False)
    layer.gossamer_report = kept.report | {"trainable": False}  # type: ignore[assignment]
    report = next(iter(gs.explain(layer)))
    assert [bucket.kernel for bucket in report.plan][5] == "dense"
    assert report.packed_bytes == kept.weight.packed_bytes + layer.weight.numel() * 2
    assert "256 tokens" in report.reason


@pytest.mark.parametrize(
    ("dtype", "pattern", "has_kernels", "sentence"),
    [
        (torch.bfloat16, "2:4", False, r"this build of gossamer has no CUDA kernels"),
        (torch.float32, "2:4", True, r"float32 weights are not multiplied packed on a GPU"),
        (torch.bfloat16, "unstructured:0.5", True, r"is not multiplied on a GPU, 2:4 is"),
    ],
)
def test_what_no_kernel_multiplies_gets_its_sentence(
    dtype: torch.dtype,
    pattern: str,
    has_kernels: bool,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeGpu(times(), monkeypatch)
    why = None if has_kernels else "this build of gossamer has no CUDA kernels"
    monkeypatch.setattr(_plan_cuda, "no_kernels", lambda: why)
    values = cpu_layer().weight.detach().to(dtype)
    request = _packing.Request(pattern=pattern)
    decision = _packing._decide_cuda(values, "layer", request, False, False, None)
    assert decision.weight is None
    assert re.search(sentence, decision.report["reason"])


def test_zeros_that_are_not_24_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(times(), monkeypatch)
    layer = nn.Linear(66, 64, dtype=torch.bfloat16)
    assert "not sparse" in gpu.decide(layer).report["reason"]
    with torch.no_grad():
        layer.weight[:, :33] = 0
    assert "its zeros are not 2:4" in gpu.decide(layer).report["reason"]


# --- On a GPU -------------------------------------------------------------------------------------


def pruned_layer(out: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    """A 2:4 layer on the GPU."""
    layer = nn.Linear(inputs, out, device="cuda", dtype=dtype)
    with torch.no_grad():
        layer.weight.view(out, inputs // 4, 4)[..., ::2] = 0
    return layer


@pytest.mark.gpu
@no_gpu
def test_a_large_layer_is_packed_and_explained() -> None:
    layer = pruned_layer(14336, 4096)
    dense = copy.deepcopy(layer)
    gs.sparsify_(layer, gs.SemiSparseWeightConfig())
    report = next(iter(gs.explain(layer)))
    assert report.packed, report.reason
    assert report.layout == "nm24_tiles"
    assert [bucket.tokens for bucket in report.plan][:3] == ["1–8", "9–16", "17–32"]
    assert all(bucket.dense_ms > 0 for bucket in report.plan)
    assert report.plan[0].kernel.startswith("sm90_")
    weight = layer.weight
    assert isinstance(weight, SparseWeight)
    for bucket, ends in zip(report.plan, _plan_cuda.BUCKETS, strict=True):
        for tokens in ends if bucket.kernel != "dense" else ():
            x = torch.empty(tokens, 4096, device="cuda", dtype=torch.bfloat16)
            ran = torch.ops.gossamer.cuda_kernel(x, 14336, weight._layout_argument)
            is_named = f"; {ran} " in bucket.reason and tokens == ends[0]
            assert ran == bucket.kernel or is_named, (tokens, ran, bucket)
    x = torch.randn(4, 4096, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(layer(x), dense(x), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@no_gpu
def test_a_small_layer_stays_dense_where_dense_is_faster() -> None:
    layer = pruned_layer(4096, 4096)
    gs.sparsify_(layer, memory="speed")
    report = next(iter(gs.explain(layer)))
    for bucket in report.plan:
        assert bucket.ms <= bucket.dense_ms / _plan_cuda_rule.NOT_SLOWER
    if report.packed and any(bucket.kernel == "dense" for bucket in report.plan):
        assert isinstance(layer.weight, SparseWeight)
        assert layer.weight.dense is not None
        assert "33.6 MB" in report.reason


@pytest.mark.gpu
@no_gpu
def test_dense_buckets_run_the_dense_copy() -> None:
    layer = pruned_layer(128, 256)
    packed = torch.ops.gossamer.pack(layer.weight.detach(), None, "2:4", "nm24_tiles", False, "w")
    planned = torch.ops.gossamer.with_plan(
        packed, json.dumps([None, "dense", "dense"] + [None] * 5)
    )
    # A copy with other values shows which of the two was multiplied.
    other = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16)
    weight = SparseWeight.from_packed(planned, dense=other)
    for tokens, runs_dense in ((1, True), (2, True), (8, True), (9, False)):
        x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16)
        residual = torch.randn(tokens, 128, device="cuda", dtype=torch.bfloat16)
        y = F.linear(x, weight, layer.bias)
        expected = F.linear(x, other if runs_dense else layer.weight, layer.bias)
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
        y = gs.linear(x, weight, layer.bias, activation="relu", residual=residual)
        torch.testing.assert_close(y, (expected + residual).relu(), rtol=3e-2, atol=3e-2)
        if runs_dense:
            assert torch.equal(F.linear(x, weight, layer.bias), expected)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize(
    ("slow", "dense"),
    [
        ({256}, {129, 160, 161, 256}),
        ({257}, {129, 160, 257, 320}),
        ({256, 257}, {129, 160, 161, 256, 257, 320}),
        ({512}, {257, 320, 321, 512}),
        ({128}, {128}),
    ],
)
def test_the_operator_runs_the_parts_that_the_plan_says_dense(
    slow: set[int], dense: set[int]
) -> None:
    plan = _plan_cuda.decide(
        times(**{f"t{tokens}": (1.0, 0.5) for tokens in slow}), KERNELS, "speed", 10
    )
    layer = pruned_layer(128, 256)
    packed = torch.ops.gossamer.pack(layer.weight.detach(), None, "2:4", "nm24_tiles", False, "w")
    planned = torch.ops.gossamer.with_plan(packed, json.dumps(plan.dense_buckets))
    other = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16)
    weight = SparseWeight.from_packed(planned, dense=other)
    weight = weight._replace(weight.packed, other, plan.bits([""] * len(KERNELS), {}, 0))
    for tokens in (128, 129, 160, 161, 256, 257, 320, 321, 512, 513):
        x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16)
        expected = F.linear(x, other if tokens in dense else layer.weight)
        torch.testing.assert_close(F.linear(x, weight), expected, rtol=2e-2, atol=2e-2)
        # The operator reads the bits itself where something is fused.
        y = gs.linear(x, weight, activation="relu")
        torch.testing.assert_close(y, expected.relu(), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@no_gpu
def test_the_cost_model_decides_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plan_cuda, "_measure", None)
    layer = pruned_layer(28672, 4096)
    gs.sparsify_(layer, plan="model", memory="speed")
    report = next(iter(gs.explain(layer)))
    assert report.packed, report.reason


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize(
    ("change", "pattern", "sentence"),
    [
        (lambda m: m.float(), "2:4", r"float32 weights are not multiplied packed on a GPU"),
        (lambda m: m, "unstructured:0.5", r"is not multiplied on a GPU, 2:4 is"),
        (lambda m: m.half(), None, r"its zeros are not 2:4"),
    ],
)
def test_what_a_gpu_does_not_multiply_stays_plain_with_a_sentence(
    change: Callable[[nn.Module], nn.Module], pattern: str | None, sentence: str
) -> None:
    layer = nn.Linear(64, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight[:, :32] = 0
    layer = change(layer)
    gs.sparsify_(layer, pattern)
    report = next(iter(gs.explain(layer)))
    assert not report.packed
    assert re.search(sentence, report.reason), report.reason
    assert type(layer.weight) is nn.Parameter
