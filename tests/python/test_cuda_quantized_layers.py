# SPDX-License-Identifier: BSD-3-Clause
"""Quantized 2:4 layers on a GPU; test_quantized_tiles.py tests the rest without one."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer import _plan_cuda
from gossamer._quantization import VALUE_DTYPES, quantize_rows, step
from gossamer._tune_cuda import Measured
from gossamer.weight import SparseWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CONFIGS = {
    "int8": gs.Int8DynamicActivationSemiSparseWeightConfig(),
    "float8": gs.Float8DynamicActivationSemiSparseWeightConfig(),
    "float8-accurate": gs.Float8DynamicActivationSemiSparseWeightConfig(accurate=True),
}


@pytest.fixture(autouse=True)
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times do not decide here whether a layer is quantized; products still do."""
    times = [[1.0, 2.0] for counts in _plan_cuda.BUCKETS for _ in counts]
    found = Measured(times, [""] * len(_plan_cuda.BUCKETS))
    monkeypatch.setattr(_plan_cuda, "_remembered", lambda *args: found)


def layers(
    kind: str, dtype: torch.dtype, out: int = 384, inputs: int = 520
) -> tuple[nn.Linear, nn.Linear]:
    """A quantized layer, and the dense one that it was."""
    if kind != "int8" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("float8 needs compute capability 9.x")
    dense = nn.Linear(inputs, out, device="cuda", dtype=dtype)
    with torch.no_grad():
        dense.weight.view(out, inputs // 4, 4)[..., ::2] = 0
    layer = copy.deepcopy(dense)
    gs.sparsify_(layer, CONFIGS[kind])
    assert isinstance(layer.weight, SparseWeight), next(iter(gs.explain(layer))).reason
    return layer, dense


def assert_close(y: Tensor, x: Tensor, dense: nn.Linear, kind: str) -> None:
    """Both roundings, 14 bits of float8 sums, and that of the result."""
    values = VALUE_DTYPES[kind.partition("-")[0]]
    x, w = x.reshape(-1, x.shape[-1]).float(), dense.weight.detach().float()
    x_off = step(x, quantize_rows(x, values)[1], values)
    w_off = step(w, quantize_rows(w, values)[1], values) * (w != 0)
    x_most, w_most = (x.abs() + x_off).double(), (w.abs() + w_off).double()
    exact = F.linear(x.double(), w.double(), dense.bias.double())
    magnitude = x_most @ w_most.T + dense.bias.double().abs()
    off = x.abs().double() @ w_off.double().T + x_off.double() @ w_most.T
    if kind != "int8":
        instructions = 4 if kind == "float8-accurate" else -(-x.shape[-1] // 64)
        off += 33 * instructions * 2.0**-13 * magnitude
    off += (torch.finfo(y.dtype).eps / 2 + 2.0**-18) * (magnitude + off)
    assert ((y.reshape(exact.shape).double() - exact).abs() <= off).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_quantized_layer_multiplies(kind: str, dtype: torch.dtype) -> None:
    layer, dense = layers(kind, dtype)
    for shape in ((1,), (2, 9), (64,), (300,)):
        x = torch.randn(*shape, 520, device="cuda", dtype=dtype)
        assert_close(layer(x), x, dense, kind)
        y = gs.linear(x, layer.weight, layer.bias, activation="relu")  # type: ignore[arg-type]
        assert torch.equal(y, layer(x).relu())


@pytest.mark.parametrize("kind", CONFIGS)
def test_compiled_and_captured_it_is_the_same(kind: str) -> None:
    layer, _ = layers(kind, torch.bfloat16)
    x = torch.randn(33, 520, device="cuda", dtype=torch.bfloat16)
    y = layer(x)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), y)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        captured = layer(x)
    x.copy_(x.roll(1, 0))
    graph.replay()
    assert torch.equal(captured, y.roll(1, 0))


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_survives_copies_files_and_the_cpu(kind: str, tmp_path: Path) -> None:
    layer, dense = layers(kind, torch.bfloat16)
    weight: Any = layer.weight
    x = torch.randn(5, 520, device="cuda", dtype=torch.bfloat16)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    for device in ("cuda", "cpu"):
        file.seek(0)
        loaded = torch.load(file, map_location=device, weights_only=True)["weight"]
        assert loaded.quantization == kind
        assert torch.equal(loaded.to_dense().cpu(), weight.to_dense().cpu())
    gs.save(layer, tmp_path / "layer.safetensors")
    fresh = nn.Linear(520, 384, dtype=torch.bfloat16)
    gs.load_into(fresh, tmp_path / "layer.safetensors", layout="format")
    assert torch.equal(fresh.cuda()(x), y)
    layer.cpu()
    if kind == "int8":
        assert_close(layer(x.cpu()), x.cpu(), dense.cpu(), kind)
    assert torch.equal(layer.cuda()(x), y)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_gradient_of_x_is_that_of_the_values(kind: str) -> None:
    layer, _ = layers(kind, torch.bfloat16)
    weight: Any = layer.weight
    x = torch.randn(4, 520, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(4, 384, device="cuda", dtype=torch.bfloat16)
    layer(x).backward(grad)
    assert x.grad is not None
    exact = grad.double() @ weight.to_dense().double()
    # Scaled gradients, dequantized weights and the result are rounded to bfloat16 each.
    magnitude = grad.double().abs() @ weight.to_dense().double().abs()
    assert ((x.grad.double() - exact).abs() <= 4 * 2.0**-8 * magnitude).all()
