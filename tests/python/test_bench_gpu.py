# SPDX-License-Identifier: BSD-3-Clause
"""What the suites of GPUs measure; whether it is measured right needs no GPU."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._quantization import VALUE_DTYPES, pack_quantized
from gossamer.bench import gpu_24_8bit, gpu_eager, gpu_model, gpu_more, gpu_sensors
from gossamer.bench.blocks import LlamaBlock, VitBlock, block_cases, pruned_24
from gossamer.bench.gpu_24 import Ceilings, cusparselt, for_cusparselt
from gossamer.bench.gpu_eager import Eager
from gossamer.bench.results import read
from gossamer.weight import SparseWeight


@torch.no_grad()
def test_a_token_behind_its_prompt_is_the_last_of_the_whole_prompt() -> None:
    torch.manual_seed(0)
    block = LlamaBlock(2, 12, 32, 4, 2, 64).double()
    prompt = torch.randn(2, 12, 32, dtype=torch.float64)
    whole = block(prompt)
    keys = block.keys.clone()
    last = block(prompt[:, -1:])
    torch.testing.assert_close(last, whole[:, -1:])
    torch.testing.assert_close(block.keys, keys)


@torch.no_grad()
def test_the_vit_block_attends_to_every_token() -> None:
    torch.manual_seed(0)
    block = VitBlock(32, 4, 64).double()
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    y = block(x)
    assert y.shape == x.shape
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[:, order]), y[:, order])
    other = x.clone()
    other[0, 4] += 1
    assert bool(((block(other) - y)[0, :4].abs().amax(-1) > 0).all())


def test_cases_have_the_shapes_of_the_networks() -> None:
    cases = {str(case): case for case in block_cases(quick=False)}
    assert {str(case) for case in block_cases(quick=True)} < set(cases)
    assert "llama8b-decode 64x1" in cases
    with torch.device("meta"):
        shapes = {
            str(case): sorted(
                tuple(layer.weight.shape)
                for layer in case.make().modules()
                if isinstance(layer, nn.Linear)
            )
            for case in cases.values()
        }
    assert shapes["llama8b-decode 1x1"] == [
        (1024, 4096), (1024, 4096), (4096, 4096), (4096, 4096), (4096, 14336), (14336, 4096),
        (14336, 4096),
    ]  # fmt: skip
    assert shapes["vit-l 1x197"] == [(1024, 1024), (1024, 4096), (3072, 1024), (4096, 1024)]


def test_blocks_are_pruned_to_the_two_largest_of_four() -> None:
    block = VitBlock(32, 4, 64)
    pruned = pruned_24(block)
    for before, after in zip(block.modules(), pruned.modules(), strict=True):
        if isinstance(before, nn.Linear) and isinstance(after, nn.Linear):
            groups = before.weight.detach().unflatten(1, (-1, 4))
            kept = after.weight.detach().unflatten(1, (-1, 4))
            assert torch.equal(kept.abs().sum(-1), groups.abs().topk(2, -1).values.sum(-1))
            assert torch.equal(kept[kept != 0], groups[kept != 0])


@torch.no_grad()
def test_a_wrong_block_is_not_timed() -> None:
    torch.manual_seed(0)
    dense = pruned_24(VitBlock(64, 4, 128).bfloat16()).eval()
    x = torch.randn(1, 5, 64).bfloat16()
    packed = gs.sparsify_(copy.deepcopy(dense), "2:4", layout="format")
    assert isinstance(packed.get_submodule("up").weight, SparseWeight)
    gpu_model.check("right", packed, dense, x)
    packed.get_submodule("up").bias.add_(1)  # type: ignore[union-attr, operator]
    with pytest.raises(RuntimeError, match="wrong: the packed block is off by"):
        gpu_model.check("wrong", packed, dense, x)
    quantized = gs.sparsify_(
        copy.deepcopy(dense), gs.Int8DynamicActivationSemiSparseWeightConfig(), layout="format"
    )
    gpu_model.check("int8", quantized, dense, x)
    x[0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        gpu_model.check("int8", quantized, dense, x)


CALLS = Eager({"gossamer": 0.5, "int_mm": 0.75}, {"gossamer": 12.5, "int_mm": 14.0})


def quantized(kind: str) -> SparseWeight:
    w = torch.randn(64, 128)
    w.view(64, 32, 4)[..., ::2] = 0
    return SparseWeight.from_quantized(*pack_quantized(w, "2:4", dtype=VALUE_DTYPES[kind]))


@pytest.mark.parametrize(
    ("kind", "times", "quickest"),
    [
        ("int8", {"gossamer": 1.0, "int_mm": 3.0, "cublas_bfloat16": 2.0}, 3.0),
        (
            "float8",
            {"gossamer": 1.0, "scaled_mm_rows": 3.0, "scaled_mm_tensor": 2.5, "cusparselt": 1.1},
            2.5,
        ),
    ],
)
def test_a_line_is_compared_with_the_quickest_dense_product_of_its_type(
    kind: str, times: dict[str, float], quickest: float
) -> None:
    weight = quantized(kind)
    ceilings = Ceilings(1e15, 1e12)
    line = gpu_24_8bit.record(weight, "row", 16, times, CALLS, ceilings, "h0")
    assert line.dense_ms == quickest
    assert line.speedup == quickest
    assert line.peers == {name: ms for name, ms in times.items() if name != "gossamer"}
    assert line.dtype == {"int8": "int8", "float8": "float8_e4m3"}[kind]
    # Few tokens: what is read and written, 8 bits of weights and inputs, 16 of outputs.
    moved = 16 * (128 + 2 * 64)
    assert line.bound_speedup == (64 * 128 + moved) / (weight.packed_bytes + moved)
    assert ceilings.bound_speedup(10**6, 4096, 4096, 1, bits=8) == pytest.approx(2.0)


def test_lines_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "h0.jsonl"
    times = {"gossamer": 1.0, "int_mm": 3.0}
    ceilings = Ceilings(1e15, 1e12)
    line = gpu_24_8bit.record(quantized("int8"), "row", 16, times, CALLS, ceilings, "h0")
    # Older lines have no eager times.
    older = {**json.loads(line.to_json()), "host_us": 0.0}
    del older["eager_ms"], older["eager_host_us"]
    path.write_text(f"{line.to_json()}\n{json.dumps(older)}\n")
    found, old = read(tmp_path)
    assert found.speedup == old.speedup == 3.0
    assert found.host_us == 12.5
    assert found.eager_ms == CALLS.ms
    assert found.eager_host_us == CALLS.host_us
    assert old.eager_ms == {}
    assert json.loads(old.to_json()) == older


def test_lines_say_how_fast_and_how_near_the_bound(tmp_path: Path) -> None:
    weight = quantized("float8")
    times = {"gossamer": 0.5, "scaled_mm_rows": 0.75}
    ceilings = Ceilings(1e15, 1e12)
    load = gpu_sensors.Load(1500.0, None)
    line = gpu_24_8bit.record(weight, "row", 16, times, CALLS, ceilings, "h0", load=load)
    # 2 · 16 · 64 · 128 operations, and the bytes of W, X and Y, in half a millisecond.
    assert line.tflops == pytest.approx(2 * 16 * 64 * 128 / 0.5e-3 / 1e12)
    moved = weight.packed_bytes + 16 * (128 + 2 * 64)
    assert line.gbs == pytest.approx(moved / 0.5e-3 / 1e9)
    assert line.bound_speedup is not None
    assert line.of_bound == pytest.approx(1.5 / line.bound_speedup)
    dense = dataclasses.replace(line, kernel="dense", bound_speedup=None)
    assert dense.gbs == pytest.approx((64 * 128 + 16 * (128 + 2 * 64)) / 0.5e-3 / 1e9)
    assert dense.of_bound is None
    written = json.loads(line.to_json())
    assert written["tflops"] == pytest.approx(line.tflops, rel=1e-4)
    assert (written["clock_mhz"], written["power_w"]) == (1500.0, None)
    (tmp_path / "h0.jsonl").write_text(json.dumps(written) + "\n")
    (found,) = read(tmp_path)
    assert found.clock_mhz == 1500.0
    assert found.power_w is None
    assert found.to_json() == line.to_json()
    # What is derived is derived again: nobody believes the line.
    (tmp_path / "h0.jsonl").write_text(json.dumps({**written, "tflops": 9e9}) + "\n")
    assert read(tmp_path)[0].tflops == pytest.approx(line.tflops, rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "counts"),
    [
        (torch.bfloat16, {1: 8, 8: 8, 9: 16, 64: 64}),
        (torch.float8_e4m3fn, {1: 16, 8: 16, 16: 16, 17: 32}),
        (torch.int8, {4: 16}),
    ],
)
def test_few_tokens_are_filled_up_for_cusparselt(
    dtype: torch.dtype, counts: dict[int, int]
) -> None:
    for tokens, taken in counts.items():
        x = torch.randint(1, 9, (tokens, 32)).to(dtype)
        filled = for_cusparselt(x)
        assert filled.shape == (taken, 32)
        assert filled.dtype == dtype
        assert torch.equal(filled[:tokens].float(), x.float())
        assert not filled[tokens:].float().any()


def test_cusparselt_multiplies_every_copy_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def multiply(w: Tensor, x: Tensor, *, out_dtype: torch.dtype | None, alg_id: int) -> Tensor:
        assert (x.shape, out_dtype, alg_id) == ((32, 8), None, 7)
        seen.append(w)
        return w

    def search(w: Tensor, x: Tensor, *, out_dtype: torch.dtype | None) -> int:
        assert (x.shape, out_dtype) == ((32, 8), None)
        return 7

    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", search)
    x = torch.ones(3, 32, dtype=torch.bfloat16)
    copies = [torch.ones(4), torch.zeros(4)]
    for call in cusparselt(copies, x):
        call()
    assert [id(w) for w in seen] == [id(w) for w in copies]
    assert cusparselt([], x) == []
    # Torch does not tell it how far rows lie apart.
    assert cusparselt(copies, torch.ones(3, 33, dtype=torch.bfloat16)[:, 1:]) == []


class FakeNvml:
    """A card that draws 123.4 W and runs at 1.41 GHz; `has_instant`: it has the newer sensor."""

    def __init__(self, has_instant: bool) -> None:
        self.has_instant = has_instant

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int, value: object) -> int:
        assert kind == 1
        value._obj.value = 1410
        return 0

    def nvmlDeviceGetFieldValues(self, handle: object, count: int, value: object) -> int:
        field = value._obj
        assert (count, field.field) == (1, 186)
        assert ctypes.sizeof(field) == 40  # nvmlFieldValue_t
        field.type, field.status, field.value = 1, 0 if self.has_instant else 3, 123_400
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: object, value: object) -> int:
        value._obj.value = 99_000
        return 0


def test_sensors_are_read_and_what_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = gpu_sensors._Sensors(FakeNvml(has_instant=True), ctypes.c_void_p())
    assert (newer.clock_mhz(), newer.power_w()) == (1410.0, 123.4)
    older = gpu_sensors._Sensors(FakeNvml(has_instant=False), ctypes.c_void_p())
    assert older.power_w() == 99.0
    monkeypatch.setattr(gpu_sensors, "_LIBRARY", "libno-such-library.so")
    gpu_sensors._sensors.cache_clear()
    assert gpu_sensors._sensors("0") is None
    assert gpu_sensors._median([None, 2.0, None, 4.0]) == 3.0
    assert gpu_sensors._median([None]) is None


def test_further_cases_are_chosen_by_group_layer_and_tokens() -> None:
    every = list(gpu_more.cases())
    names = [f"{group} {shape} {n}" for group, shape, counts in every for n in counts]
    assert len(names) == len(set(names)) > 100
    assert {shape for _, shape, _ in every} <= set(gpu_more._ALL_SHAPES)
    chosen = list(gpu_more.cases(lambda name: "sm80 llama8b.o" in name))
    assert chosen == [("sm80", "llama8b.o", [16, 64, 1024])]
    assert list(gpu_more.cases(lambda name: name == "float8 qwen7b.o 256")) == [
        ("float8", "qwen7b.o", [256])
    ]
    before = os.environ.get("GOSSAMER_KERNEL")
    with gpu_more._kernel("sm80_mma_sp24_bf16_128x16"):
        assert os.environ["GOSSAMER_KERNEL"] == "sm80_mma_sp24_bf16_128x16"
    assert os.environ.get("GOSSAMER_KERNEL") == before


class FakeGpu:
    """A clock that calls advance, and a device that is busy for longer than the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = self.device = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = math.nan

            def record(self) -> None:
                self.at = gpu.device = max(gpu.device, gpu.host)

            def synchronize(self) -> None:
                gpu.synchronize()

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(gpu_eager, "perf_counter", lambda: self.host)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)

    def call(self, host: float, device: float) -> Callable[[], None]:
        """Takes so many seconds of the host, and then of the device."""

        def run() -> None:
            self.host += host
            self.device = max(self.device, self.host) + device

        return run


def test_eager_calls_wait_for_the_host_or_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    found = gpu_eager.eager(
        {
            "small": [gpu.call(20e-6, 5e-6)],
            "large": [gpu.call(30e-6, 10e-3)],
            "refused": [],
        }
    )
    assert list(found.ms) == ["small", "large"]
    # 30 calls of the host, and the last one's product.
    assert found.ms["small"] == pytest.approx((30 * 20e-3 + 5e-3) / 30)
    assert found.ms["large"] == pytest.approx((5 * 10 + 0.03) / 5)
    assert found.host_us == pytest.approx({"small": 20.0, "large": 30.0})


def test_a_host_that_is_interrupted_counts_with_its_best_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGpu(monkeypatch)
    slow = iter([True] * 52 + [False] * 1000)  # most of two rounds of 22 calls

    def run() -> None:
        gpu.call(90e-6 if next(slow) else 10e-6, 1e-6)()

    found = gpu_eager.eager({"it": [run]})
    assert found.host_us["it"] == pytest.approx(10.0)


def test_copies_take_turns_and_calls_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    seen: list[str] = []

    def copy_of(name: str) -> Callable[[], None]:
        def run() -> None:
            seen.append(name)
            gpu.call(1e-6, 1.0)()

        return run

    gpu_eager.eager({"it": [copy_of(name) for name in "abc"]})
    assert "".join(seen) == ("abc" * len(seen))[: len(seen)]
    assert len(seen) == 3 + gpu_eager.ROUNDS * gpu_eager.LEAST_CALLS


def test_what_torch_refuses_is_no_contestant() -> None:
    w = torch.zeros(64, 64, dtype=torch.bfloat16)
    assert gpu_eager.semi_structured([w]) == []  # it is not on a GPU
    x = torch.zeros(3, 64)
    assert gpu_eager.semi_structured_calls(x, []) == []
    assert gpu_eager.semi_structured_calls(x, [torch.zeros(8, 60)] * 2) == []
    x[:] = 1
    calls = gpu_eager.semi_structured_calls(x, [torch.zeros(8, 64), torch.ones(8, 64)])
    assert [float(call()[0, 0]) for call in calls] == [0.0, 64.0]


def test_every_variant_of_a_block_has_a_config_that_sparsify_takes() -> None:
    for config in gpu_model.VARIANTS.values():
        layer = nn.Linear(64, 64, dtype=torch.bfloat16)
        with torch.no_grad():
            layer.weight.view(64, 16, 4)[..., ::2] = 0
        gs.sparsify_(layer, config, plan="model")
        assert isinstance(layer(torch.zeros(1, 64).bfloat16()), Tensor)
