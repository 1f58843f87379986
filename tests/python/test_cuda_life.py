# SPDX-License-Identifier: BSD-3-Clause
"""A packed layer's life on a GPU, for 16- and 8-bit weights: copies, files, devices, compilers,
graphs, streams."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional as F

import gossamer as gs
from gossamer import _layout_argument, _plan_cuda, _tune_cuda
from gossamer._quantization import pack_quantized
from gossamer.weight import SparseWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")

OUT, IN = 384, 520
KINDS = ("bfloat16", "float16", "int8", "float8")
VALUES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
ops = torch.ops.gossamer


def packed_layer(kind: str, device: str = "cuda") -> nn.Linear:
    """A layer whose weight is packed, whatever is faster."""
    if kind == "float8" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("float8 needs compute capability 9.x")
    dtype = torch.float16 if kind == "float16" else torch.bfloat16
    layer = nn.Linear(IN, OUT, device=device, dtype=dtype)
    w = layer.weight.detach()
    w.view(OUT, IN // 4, 4)[..., ::2] = 0
    if kind in VALUES:
        packed, scale = pack_quantized(w, "2:4", dtype=VALUES[kind], layout="nm24_tiles")
        weight = SparseWeight.from_quantized(packed, scale, dtype)
    else:
        weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def inputs(layer: nn.Linear, *shape: int) -> Tensor:
    weight: Any = layer.weight
    return torch.randn(*shape, IN, device=weight.device, dtype=weight.dtype)


def contents(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and tensors of a safetensors file, in whatever order they were written."""
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
        values = {n: file.get_tensor(n).view(torch.uint8).numpy().tobytes() for n in names}
        return dict(file.metadata()), values


def assert_same_product(layer: nn.Linear, x: Tensor, y: Tensor) -> None:
    """Equal but for the order of the sums: a plan is made anew, and rows differ in it."""
    weight: Any = layer.weight
    sizes = x.float().abs() @ weight.to_dense().float().abs().T
    sums = 2 * (IN + 1) * torch.finfo(torch.float32).eps * sizes
    bound = torch.finfo(y.dtype).eps * (y.float().abs() + sums) + sums
    assert ((layer(x).float() - y.float()).abs() <= bound).all()


@pytest.fixture(params=KINDS)
def layer(request: pytest.FixtureRequest) -> nn.Linear:
    return packed_layer(request.param)


@torch.no_grad()
def test_copies_pickles_and_state_dicts_compute_the_same(layer: nn.Linear) -> None:
    x = inputs(layer, 7)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["weight"].device.type == "cuda"
    assert state["weight"].layout_name == "nm24_tiles"
    fresh = nn.Linear(IN, OUT, device="meta", dtype=x.dtype)
    fresh.load_state_dict(state, assign=True)
    assert torch.equal(fresh(x), y)
    other = copy.deepcopy(layer)
    weight: Any = other.weight
    weight.copy_(torch.zeros(OUT, IN, device="cuda", dtype=x.dtype))
    assert torch.equal(other(x), layer.bias.expand_as(y))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


@torch.no_grad()
def test_one_file_serves_the_cpu_and_the_gpu(layer: nn.Linear, tmp_path: Path) -> None:
    x = inputs(layer, 5)
    y = layer(x)
    path = tmp_path / "layer.safetensors"
    gs.save(layer, path)
    weight: Any = layer.weight
    fresh = nn.Linear(IN, OUT, dtype=x.dtype)
    gs.load_into(fresh, path, layout="format")
    loaded: Any = fresh.weight
    assert torch.equal(loaded.to_dense(), weight.to_dense().cpu())
    assert_same_product(fresh.cuda(), x, y)
    there_and_back = copy.deepcopy(layer).cpu()
    moved: Any = there_and_back.weight
    assert moved.layout_name == "nm"
    second = tmp_path / "again.safetensors"
    gs.save(there_and_back, second)
    assert contents(second) == contents(path)
    assert_same_product(there_and_back.cuda(), x, y)


@torch.no_grad()
def test_a_cast_on_the_gpu_is_the_cast_of_the_values(layer: nn.Linear) -> None:
    weight: Any = layer.weight
    other = torch.float16 if weight.dtype == torch.bfloat16 else torch.bfloat16
    cast_layer = copy.deepcopy(layer).to(other)
    cast: Any = cast_layer.weight
    x = inputs(cast_layer, 9)
    if weight.scale is None:
        anew = SparseWeight.from_dense(
            cast.to_dense(), "2:4", mask=cast.mask(), layout="nm24_tiles"
        )
    else:
        anew = SparseWeight.from_quantized(weight.packed, weight.scale, other)
    assert torch.equal(cast_layer(x), F.linear(x, anew, cast_layer.bias))
    assert cast.dtype == other
    assert cast.device.type == "cuda"
    assert torch.equal(cast.mask(), weight.mask())
    if weight.scale is None:
        assert torch.equal(cast.to_dense(), weight.to_dense().to(other))
    else:
        assert torch.equal(cast.scale, weight.scale)
        assert cast.quantization == weight.quantization


@torch.no_grad()
def test_compiled_with_static_and_dynamic_token_counts(layer: nn.Linear) -> None:
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
        for tokens in (1, 2, 40, 300):
            x = inputs(layer, tokens)
            assert torch.equal(compiled(x), layer(x))


@torch.no_grad()
def test_exported_with_dynamic_token_counts(layer: nn.Linear) -> None:
    tokens = torch.export.Dim("tokens", min=1, max=4096)
    program = torch.export.export(layer, (inputs(layer, 8),), dynamic_shapes=({0: tokens},))
    file = io.BytesIO()
    torch.export.save(program.run_decompositions({}), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for count in (1, 8, 200):
        x = inputs(layer, count)
        assert torch.equal(loaded(x), layer(x))


def test_the_operator_is_what_torch_asks_of_it(layer: nn.Linear) -> None:
    weight: Any = layer.weight
    bias = layer.bias.detach()
    for tokens in (1, 130):
        x = inputs(layer, tokens)
        arguments = (x, weight.packed, weight._layout_argument, OUT, weight.scale, bias)
        opcheck(ops.linear.default, arguments)
        opcheck(ops.linear_autograd.default, (x.requires_grad_(), *arguments[1:]))


@torch.no_grad()
def test_graphs_on_a_stream_of_their_own(layer: nn.Linear) -> None:
    for tokens in (1, 64, 300):
        x = inputs(layer, tokens)
        y = layer(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            layer(x)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            captured = layer(x)
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, y)


@torch.no_grad()
def test_streams_and_threads_do_not_meet(layer: nn.Linear) -> None:
    xs = [inputs(layer, tokens) for tokens in (1, 16, 64, 300)]
    expected = [layer(x) for x in xs]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            results = [layer(xs[i]) for _ in range(50)]
            torch.cuda.current_stream().synchronize()
        if not all(torch.equal(result, expected[i]) for result in results):
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Two GPUs -------------------------------------------------------------------------------------


@two_gpus
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_computes_where_it_is_and_not_on_the_current_device(kind: str) -> None:
    layer = packed_layer(kind, "cuda:1")
    assert torch.cuda.current_device() == 0
    x = inputs(layer, 33)
    y = layer(x)
    assert y.device == torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    moved = copy.deepcopy(layer).to("cuda:0")
    weight: Any = moved.weight
    assert weight.device == torch.device("cuda", 0)
    assert torch.equal(moved(x.to("cuda:0")).cpu(), y.cpu())
    with pytest.raises(ValueError, match="x is on cuda:0, the packed weight on cuda:1"):
        layer(x.to("cuda:0"))
    before: Any = layer.weight
    assert torch.equal(weight.to_dense().cpu(), before.to_dense().cpu())
    with torch.cuda.device(1):
        assert torch.equal(moved(x.to("cuda:0")).cpu(), y.cpu())


@two_gpus
def test_the_plan_measures_on_the_device_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(8192, 8192, bias=False, device="cuda:1", dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.view(8192, 2048, 4)[..., ::2] = 0
    torch.cuda.reset_peak_memory_stats(0)
    before = torch.cuda.memory_allocated(0)
    gs.sparsify_(layer, memory="speed")
    assert torch.cuda.max_memory_allocated(0) == before
    assert next(iter(gs.explain(layer))).packed


# --- The tuner ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_named_runs_and_an_unknown_one_is_the_models(kind: str) -> None:
    layer = packed_layer(kind)
    weight: Any = layer.weight
    for tokens in (1, 8, 16, 32, 128, 300):
        x = inputs(layer, tokens)
        operand = ops.quantize_rows(x, VALUES[kind])[0] if kind in VALUES else x
        model = ops.cuda_kernel(operand, OUT)
        name = str(operand.dtype).removeprefix("torch.")
        table = json.loads(ops.cuda_kernel_table(operand, OUT))
        rows = [row for row in table if row["dtype"] == name]
        own = f"sm{torch.cuda.get_device_capability()[0]}0"
        tuned = [row for row in rows if row["name"].startswith(own) and row["row"]]
        assert [row["row"] for row in tuned] == list(range(1, len(tuned) + 1))
        left = {row["name"] for row in rows if row["name"].startswith(own) and not row["row"]}
        assert all("_unaligned" in name for name in left)
        expected, allowed = _tune_cuda.Reference(weight, weight.to_dense()).of(x)
        codes = [0] * _layout_argument.PARTS
        part = _layout_argument.part_of(tokens)
        for row in tuned:
            codes[part] = row["row"]
            bits = _layout_argument.plan_bits(codes, table=row["table"])
            ran = ops.cuda_kernel(operand, OUT, bits)
            assert ran == (model if row["refuses"] else row["name"])
            y = F.linear(x, weight._replace(weight.packed, None, bits))
            assert _tune_cuda.discrepancy(y, expected, allowed) is None, row["name"]
            stale = bits ^ 1 << _layout_argument.TABLE_SHIFT
            assert ops.cuda_kernel(operand, OUT, stale) == model
        codes[part] = len(tuned) + 1
        if codes[part] < _layout_argument.DENSE:
            unknown = _layout_argument.plan_bits(codes, table=rows[0]["table"])
            assert ops.cuda_kernel(operand, OUT, unknown) == model


@pytest.mark.parametrize("quantize", [None, "int8", "float8"])
def test_measuring_leaves_no_right_row_out(quantize: str | None) -> None:
    configs: dict[str | None, Any] = {
        None: gs.SemiSparseWeightConfig(),
        "int8": gs.Int8DynamicActivationSemiSparseWeightConfig(),
        "float8": gs.Float8DynamicActivationSemiSparseWeightConfig(),
    }
    if quantize == "float8" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("float8 needs compute capability 9.x")
    layer = nn.Linear(4096, 6144, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.view(6144, 1024, 4)[..., ::2] = 0
    gs.sparsify_(layer, configs[quantize])
    report = next(iter(gs.explain(layer)))
    assert "left out" not in report.reason, report.reason
    assert "failed" not in report.reason, report.reason
    assert len(report.plan) == len(_plan_cuda.BUCKETS)
