# SPDX-License-Identifier: BSD-3-Clause
"""Quantized 2:4 layers as a GPU has them: what is decided, packed, called, kept and saved.

The GPU is faked: the operator `linear` is answered by torch's own operators out of the packed
tiles and the bits of its layout argument, and what the plan asks is answered by the test.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer import (
    _layout_argument,
    _ops_gradients,
    _packing,
    _plan_cuda,
    _weight_dispatch,
    _weight_memory,
    _weight_products,
)
from gossamer._activation import apply_activation
from gossamer._quantization import VALUE_DTYPES, quantize_rows, step
from gossamer._quantized_check import discrepancy
from gossamer._tune_cuda import Measured
from gossamer._weight_facts import Facts
from gossamer.weight import SparseWeight

TILES = 33
CONFIGS = {
    "int8": gs.Int8DynamicActivationSemiSparseWeightConfig(),
    "float8": gs.Float8DynamicActivationSemiSparseWeightConfig(),
    "float8-accurate": gs.Float8DynamicActivationSemiSparseWeightConfig(accurate=True),
}
KINDS = tuple(CONFIGS)


class FakeGpu:
    """A GPU's side of the operators and of the plan, on CPU tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self.times = [[1.0, 2.0] for counts in _plan_cuda.BUCKETS for _ in counts]
        self.measured: list[Any] = []
        self.corrupt: Callable[[Tensor], Tensor] = lambda y: y
        self.has_kernels = True
        layout_argument = Facts.layout_argument
        on_gpu = torch.device("cuda", 0)
        monkeypatch.setattr(Facts, "layout_argument", lambda f, _: layout_argument(f, on_gpu))
        monkeypatch.setattr(_packing, "_is_on_gpu", lambda tensor: True)
        for name in ("_linear_op", "_linear_eager", "_linear_autograd_op"):
            monkeypatch.setattr(_weight_products, name, self.linear)
        monkeypatch.setenv("GOSSAMER_CACHE", "off")
        monkeypatch.setattr(_plan_cuda, "_measured", {})
        monkeypatch.setattr(_plan_cuda, "_key", lambda dense, bias: "layer")
        monkeypatch.setattr(_plan_cuda, "no_kernels", lambda: None)
        monkeypatch.setattr(_plan_cuda, "_measure", self.measure)
        monkeypatch.setattr(_plan_cuda, "_kernel", self.kernel)
        monkeypatch.setattr(_plan_cuda, "_rows", self.rows)
        properties = type("Properties", (), {"name": "Fake"})
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    def measure(self, weight: SparseWeight, dense: Tensor, bias: bool) -> Measured:
        self.measured.append(weight)
        assert F.linear(dense[:1], weight).shape == (1, dense.shape[0])
        return Measured(self.times, [""] * len(_plan_cuda.BUCKETS))

    def kernel(self, x: Tensor, out: int) -> str:
        return f"fake_{x.dtype}_{x.shape[0]}" if self.has_kernels else ""

    def rows(self, x: Tensor, out: int, quantization: str | None) -> list[dict[str, Any]]:
        return [{"name": f"accurate_{x.shape[0]}", "seconds": 1.0}]

    def linear(
        self,
        x: Tensor,
        packed: Tensor,
        layout: int,
        out: int,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        activation: int = 0,
        residual: Tensor | None = None,
        dense: Tensor | None = None,
    ) -> Tensor:
        """What src/torch/ops_cuda_linear.cpp does, bit by bit of `layout`."""
        inputs = x.shape[-1]
        assert layout & 255 == TILES
        assert layout >> _layout_argument.TOLD_SHIFT & 1
        assert layout >> _layout_argument.INPUTS_SHIFT & 127 == inputs % 128
        tokens = x.numel() // inputs
        runs_dense = _layout_argument.runs_dense(layout, tokens) and dense is not None
        call = {"tokens": tokens, "dense": runs_dense}
        call["float8"] = bool(layout >> _layout_argument.FLOAT8_SHIFT & 1)
        call["accurate"] = bool(layout >> _layout_argument.ACCURATE_SHIFT & 1)
        self.calls.append(call)
        if call["dense"]:
            y = F.linear(x, dense, bias)  # type: ignore[arg-type]
        else:
            assert scale is not None
            kind = torch.float8_e4m3fn if call["float8"] else torch.int8
            q, x_scale = quantize_rows(x.reshape(-1, inputs), kind)
            w = torch.ops.gossamer.unpack(packed, [out, inputs], kind)
            y = (q.double() @ w.double().T) * x_scale[:, None] * scale
            y = y.reshape(*x.shape[:-1], out)
            y = self.corrupt(y if bias is None else y + bias)
            y = (y if residual is None else y + residual).to(x.dtype)
        return apply_activation(y, activation)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def pruned_layer(
    out: int = 96, inputs: int = 132, dtype: torch.dtype = torch.bfloat16
) -> nn.Linear:
    layer = nn.Linear(inputs, out, dtype=dtype)
    with torch.no_grad():
        layer.weight.view(out, inputs // 4, 4)[..., ::2] = 0
    return layer


def bound(x: Tensor, w: Tensor, kind: str) -> Tensor:
    """By how much a quantized product may be off: both roundings, and that of the result."""
    dtype = VALUE_DTYPES[kind.partition("-")[0]]
    x, w = x.float(), w.float()
    x_off = step(x, quantize_rows(x, dtype)[1], dtype)
    w_off = step(w, quantize_rows(w, dtype)[1], dtype) * (w != 0)
    off = x.abs() @ w_off.T + x_off @ w.abs().T + x_off @ w_off.T
    magnitude = x.abs() @ w.abs().T + off + 1
    return off + magnitude * (2.0**-8 + 2.0**-18)  # + 1: the bias; 2^-8: half a unit of bfloat16


def report_of(model: nn.Module) -> gs.LayerReport:
    return next(iter(gs.explain(model)))


def packed_layer(kind: str, **kwargs: Any) -> tuple[nn.Linear, nn.Linear, SparseWeight]:
    layer = pruned_layer()
    dense = copy.deepcopy(layer)
    gs.sparsify_(layer, CONFIGS[kind], **kwargs)
    weight = layer.weight
    assert isinstance(weight, SparseWeight), report_of(layer).reason
    return layer, dense, weight


# --- Deciding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_quantized_and_explained(kind: str, gpu: FakeGpu) -> None:
    layer, dense, weight = packed_layer(kind)
    assert weight.quantization == kind
    assert weight.layout_name == "nm24_tiles"
    assert weight.dtype == torch.bfloat16
    assert weight.requires_grad is False
    report = report_of(layer)
    assert report.packed
    assert report.reason.startswith(kind.partition("-")[0] + " weights")
    assert ("accurate sums" in report.reason) == (kind == "float8-accurate")
    names = [bucket.kernel for bucket in report.plan]
    assert len(names) == len(_plan_cuda.BUCKETS)
    assert all(("accurate" in name) == (kind == "float8-accurate") for name in names)
    # What was measured is the quantized call itself.
    assert [one.quantization for one in gpu.measured] == [kind]
    gpu.calls.clear()
    for shape in ((1, 132), (2, 9, 132), (132,)):
        x = torch.randn(shape).bfloat16()
        y = layer(x)
        rows = x.reshape(-1, 132)
        exact = F.linear(rows.double(), dense.weight.double(), dense.bias.double())
        off = (y.reshape(-1, 96).double() - exact).abs()
        assert (off <= bound(rows, dense.weight.detach(), kind)).all()
        assert y.shape == (*shape[:-1], 96)
        assert y.dtype == torch.bfloat16
    assert [call["float8"] for call in gpu.calls] == [kind != "int8"] * 3
    assert [call["accurate"] for call in gpu.calls] == [kind == "float8-accurate"] * 3


def test_where_dense_is_faster_the_layer_stays_dense(gpu: FakeGpu) -> None:
    gpu.times = [[2.0, 1.0] for _ in gpu.times]
    layer = pruned_layer()
    gs.sparsify_(layer, CONFIGS["int8"])
    assert type(layer.weight) is nn.Parameter
    assert "no token count gains 5 % packed" in report_of(layer).reason


@pytest.mark.parametrize("kind", KINDS)
def test_dense_runs_at_the_token_counts_where_it_is_faster(kind: str, gpu: FakeGpu) -> None:
    slow = [counts[0] >= 2049 for counts in _plan_cuda.BUCKETS for _ in counts]
    gpu.times = [[1.0, 0.5] if is_slow else [1.0, 2.0] for is_slow in slow]
    layer = pruned_layer()
    gs.sparsify_(layer, CONFIGS[kind], memory="low")
    assert type(layer.weight) is nn.Parameter
    assert 'memory="low" keeps no dense copy' in report_of(layer).reason
    layer, dense, weight = packed_layer(kind, memory="speed")
    assert weight.dense is not None
    assert torch.equal(weight.dense, dense.weight)
    assert weight._facts.dense_buckets == 1 << 7
    gpu.calls.clear()
    x = torch.randn(2049, 132).bfloat16()
    assert torch.equal(layer(x), dense(x))
    assert gpu.calls == []  # torch's own call
    residual = torch.randn(2049, 96).bfloat16()
    gs.linear(x, weight, layer.bias, activation="relu", residual=residual)
    layer(x[:2048])
    assert [call["dense"] for call in gpu.calls] == [True, False]


@pytest.mark.parametrize("plan", ["measure", "model"])
@pytest.mark.parametrize(
    "corrupt",
    [
        lambda y: y * 1.5,
        lambda y: y.roll(1, -1),
        lambda y: y * torch.nan,
        lambda y: torch.where(torch.arange(y.shape[0])[:, None] == 250, 0.0, y),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_that_is_wrong_leaves_the_layer_dense(
    kind: str, corrupt: Callable[[Tensor], Tensor], plan: str, gpu: FakeGpu
) -> None:
    gpu.corrupt = corrupt
    layer = pruned_layer()
    gs.sparsify_(layer, CONFIGS[kind], plan=plan)
    assert type(layer.weight) is nn.Parameter
    assert "tokens is off by" in report_of(layer).reason
    assert gpu.measured == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("cudaStreamBeginCapture: operation not permitted"),
        ZeroDivisionError("division by zero"),
    ],
)
@pytest.mark.parametrize("place", ["measure", "linear", "pack"])
def test_every_failure_leaves_the_layer_dense_with_a_sentence(
    place: str, error: Exception, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> Any:
        raise error

    if place == "measure":
        monkeypatch.setattr(_plan_cuda, "_measure", fail)
    elif place == "linear":
        monkeypatch.setattr(_weight_products, "_linear_eager", fail)
    else:
        monkeypatch.setattr(_packing, "_quantized_tiles", fail)
    layer = pruned_layer()
    gs.sparsify_(layer, CONFIGS["float8"])
    assert type(layer.weight) is nn.Parameter
    what = "packing it failed: " if place == "pack" else "comparing it with dense failed: "
    assert what + str(error).splitlines()[0] in report_of(layer).reason


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda layer: layer.float(), "float32 weights are not multiplied packed on a GPU"),
        (lambda layer: layer, "Fake (compute capability 7.5) has no sparse tensor cores; those"),
    ],
)
def test_what_no_kernel_multiplies_gets_its_sentence(
    change: Callable[[nn.Linear], nn.Linear], sentence: str, gpu: FakeGpu
) -> None:
    gpu.has_kernels = False
    layer = change(pruned_layer())
    gs.sparsify_(layer, CONFIGS["float8"])
    assert type(layer.weight) is nn.Parameter
    assert sentence in report_of(layer).reason


def test_what_is_not_24_is_refused_or_left_alone(gpu: FakeGpu) -> None:
    layer = nn.Linear(64, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"more than 2 non-zeros|2:4"):
        gs.sparsify_(layer, CONFIGS["int8"])
    assert type(layer.weight) is nn.Parameter
    layer = pruned_layer()
    gs.sparsify_(layer, gs.Int8DynamicActivationSparseWeightConfig("unstructured:0.5"))
    assert "is not multiplied on a GPU, 2:4 is" in report_of(layer).reason
    gs.sparsify_(layer, gs.Int8DynamicActivationSparseWeightConfig())
    assert isinstance(layer.weight, SparseWeight)


def test_without_a_gpu_float8_stays_dense_and_int8_is_planned_for_the_cpu() -> None:
    layer = pruned_layer()
    gs.sparsify_(layer, CONFIGS["float8"])
    assert "float8 weights are multiplied on CUDA devices" in report_of(layer).reason
    gs.sparsify_(layer, CONFIGS["int8"], layout="format")
    assert isinstance(layer.weight, SparseWeight)
    assert layer.weight.quantization == "int8"


def test_configs_say_what_they_accept() -> None:
    for config in (
        gs.Int8DynamicActivationSemiSparseWeightConfig,
        gs.Float8DynamicActivationSemiSparseWeightConfig,
    ):
        assert config(memory="speed", plan="model").settings().memory == "speed"
        with pytest.raises(ValueError, match="plan='never'"):
            config(plan="never")
    assert CONFIGS["float8-accurate"].settings().quantize == "float8-accurate"


# --- The check that comes before the plan ---------------------------------------------------------


@pytest.mark.parametrize("inputs", [4, 60, 132, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_the_check_accepts_what_rounding_explains(kind: str, inputs: int, gpu: FakeGpu) -> None:
    for scale in (1e-3, 1.0, 50.0):
        layer = pruned_layer(40, inputs)
        with torch.no_grad():
            layer.weight.mul_(scale)
            layer.weight[3] = 0
            layer.weight[5] *= 1e-4
        weight = _packing._quantized_tiles(layer.weight.detach(), kind, "w")
        assert discrepancy(weight, layer.weight.detach()) is None


def test_the_check_holds_for_the_kernels_of_the_cpu() -> None:
    values = pruned_layer(64, 256).weight.detach()
    weight = _weight_dispatch._moved(
        _packing._quantized_tiles(values, "int8", "w"), torch.device("cpu")
    )
    assert discrepancy(weight, values) is None
    assert weight.scale is not None
    weight.scale[7] *= 1.1
    text = discrepancy(weight, values)
    assert text is not None
    assert "is off by" in text


# --- Keeping and moving ---------------------------------------------------------------------------


def same(a: SparseWeight, b: SparseWeight) -> bool:
    assert a.scale is not None
    assert b.scale is not None
    return (
        torch.equal(a.packed, b.packed)
        and torch.equal(a.scale, b.scale)
        and a._facts == b._facts
        and (a.dense is None) == (b.dense is None)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_the_same_weight(kind: str, gpu: FakeGpu) -> None:
    layer, _, weight = packed_layer(kind)
    x = torch.randn(5, 132).bfloat16()
    y = layer(x)
    twin = copy.deepcopy(layer)
    assert isinstance(twin.weight, SparseWeight)
    assert same(twin.weight, weight)
    assert torch.equal(twin(x), y)
    other = packed_layer(kind)[0]
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    fresh = nn.Linear(132, 96, dtype=torch.bfloat16)
    fresh.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(fresh(x), y)
    half = copy.deepcopy(layer).half()
    assert isinstance(half.weight, SparseWeight)
    assert half.weight.quantization == kind
    assert half(x.half()).dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_without_a_gpu_is_the_format(kind: str, gpu: FakeGpu) -> None:
    layer, _, weight = packed_layer(kind)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["weight"]
    assert loaded.layout_name == "nm"
    assert loaded.quantization == kind
    assert torch.equal(loaded.to_dense(), weight.to_dense())
    tiles = torch.ops.gossamer.convert(loaded.packed, "nm24_tiles")
    values = torch.ops.gossamer.unpack(tiles, [96, 132], weight._facts.dtype)
    kept = torch.ops.gossamer.unpack(weight.packed, [96, 132], weight._facts.dtype)
    assert torch.equal(values.float(), kept.float())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_keeps_values_scales_and_the_kind_of_sums(
    kind: str, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, _, weight = packed_layer(kind)
    path = tmp_path / "layer.safetensors"
    gs.save(layer, path)
    monkeypatch.undo()  # loaded where there is no GPU
    other = nn.Linear(132, 96, dtype=torch.bfloat16)
    gs.load_into(other, path, layout="format")
    loaded = other.weight
    assert isinstance(loaded, SparseWeight)
    assert loaded.quantization == kind
    assert loaded.scale is not None
    assert weight.scale is not None
    assert torch.equal(loaded.scale, weight.scale)
    assert torch.equal(loaded.to_dense(), weight.to_dense())
    if kind != "int8":
        gs.load_into(other, path)
        assert "CUDA devices only" in report_of(other).reason
        assert isinstance(other.weight, SparseWeight)


def test_int8_layers_go_on_working_on_the_cpu(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, dense, weight = packed_layer("int8")
    x = torch.randn(7, 132).bfloat16()
    monkeypatch.undo()
    layer.weight = nn.Parameter(
        _weight_dispatch._moved(weight, torch.device("cpu")), requires_grad=False
    )
    assert layer.weight.quantization == "int8"
    off = (
        layer(x).double() - F.linear(x.double(), dense.weight.double(), dense.bias.double())
    ).abs()
    assert (off <= bound(x, dense.weight.detach(), "int8")).all()


def test_float8_layers_are_kept_on_the_cpu_and_say_where_they_run(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, _, weight = packed_layer("float8")
    monkeypatch.undo()
    moved = _weight_dispatch._moved(weight, torch.device("cpu"))
    assert torch.equal(moved.to_dense(), weight.to_dense())
    with pytest.raises(ValueError, match=r"float8 weight with scales is multiplied on CUDA"):
        F.linear(torch.randn(3, 132).bfloat16(), moved)
    layer.weight = nn.Parameter(moved, requires_grad=False)
    gs.desparsify_(layer)
    assert layer(torch.randn(3, 132).bfloat16()).shape == (3, 96)


def test_a_weight_for_float32_models_is_not_moved_to_a_gpu() -> None:
    layer = pruned_layer(dtype=torch.float32)
    gs.sparsify_(layer, CONFIGS["int8"], layout="format")
    with pytest.raises(NotImplementedError, match=r"dtype torch.float32 cannot be moved"):
        _weight_dispatch._moved(layer.weight, torch.device("cuda", 0))


def test_scales_travel_with_data_and_between_processes(gpu: FakeGpu) -> None:
    _, _, weight = packed_layer("float8-accurate")
    other = weight.detach().clone()
    assert isinstance(other, SparseWeight)
    assert other.scale is not None
    other.scale.zero_()
    other.data = weight
    assert same(other, weight)
    rebuild, state = _weight_memory._reduce_for_process(weight)
    assert same(rebuild(*state), weight)


# --- Inside models --------------------------------------------------------------------------------


def test_a_fused_layer_is_one_call(gpu: FakeGpu) -> None:
    model = nn.Sequential(pruned_layer(), nn.GELU()).eval()
    gs.fuse_(model)
    dense = copy.deepcopy(model)
    gs.sparsify_(model, CONFIGS["float8"])
    gpu.calls.clear()
    x = torch.randn(6, 132).bfloat16()
    y = model(x)
    assert len(gpu.calls) == 1
    off = (y.double() - dense(x).double()).abs()
    # GELU's slope is at most 1.13; the dense result is rounded, too.
    limit = bound(x, dense[0].weight.detach(), "float8")
    assert (off <= 1.13 * limit + 2.0**-7 * (1 + dense(x).abs())).all()


def test_the_gradient_of_x_goes_through_the_values_as_they_are() -> None:
    layer = pruned_layer()
    for kind in KINDS:
        weight = _packing._quantized_tiles(layer.weight.detach(), kind, "w")
        facts = weight._facts
        argument = facts.layout_argument(torch.device("cuda"))
        context = type("Context", (), {})()
        context.saved_tensors = (weight.packed, None, None, weight.scale, None, None, None)
        context.needs_input_grad = (True,) + (False,) * 8
        context.activation, context.layout, context.out, context.inputs = 0, argument, 96, 132
        context.x_dtype, context.bias_dtype, context.x_scale = torch.float64, None, 0.0
        grad = torch.randn(3, 96, dtype=torch.float64)
        found = _ops_gradients.linear_backward(context, grad)[0]
        assert found is not None
        values = torch.ops.gossamer.unpack(weight.packed, [96, 132], facts.dtype).double()
        assert weight.scale is not None
        expected = grad @ (values * weight.scale.double()[:, None])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_holds_one_operator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer_argument = Facts.layout_argument
    monkeypatch.setattr(
        Facts, "layout_argument", lambda f, _: layer_argument(f, torch.device("cuda"))
    )
    layer = pruned_layer()
    weight = _packing._quantized_tiles(layer.weight.detach(), kind, "w")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(
        layer, (torch.randn(8, 132).bfloat16(),), dynamic_shapes=({0: tokens},)
    )
    calls = [node for node in program.graph.nodes if "gossamer.linear" in str(node.target)]
    assert len(calls) == 1
    argument = calls[0].args[2]
    assert argument & 255 == TILES
    assert argument >> _layout_argument.TOLD_SHIFT & 255 == 1 | 132 % 128 << 1
    assert bool(argument >> _layout_argument.FLOAT8_SHIFT & 1) == (kind != "int8")
    assert bool(argument >> _layout_argument.ACCURATE_SHIFT & 1) == (kind == "float8-accurate")
