# SPDX-License-Identifier: BSD-3-Clause
"""What the suites of GPUs measure; whether it is measured right needs no GPU."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._quantization import VALUE_DTYPES, pack_quantized
from gossamer.bench import gpu_24_8bit, gpu_eager, gpu_model
from gossamer.bench.blocks import LlamaBlock, VitBlock, block_cases, pruned_24
from gossamer.bench.gpu_24 import Ceilings
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
