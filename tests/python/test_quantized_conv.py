# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions with int8 weights, inputs quantized an image at a time."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer._quantization import quantize_rows
from gossamer._weight_convolution import conv2d
from gossamer.weight import SparseWeight
from sparsify_helpers import is_packed

PATTERNS = ("unstructured:0.5", "unstructured:0.9", "block:1x4:0.8", "2:4")
CONFIG = gs.Int8DynamicActivationSparseWeightConfig()


def quantized(
    pattern: str = "unstructured:0.8", layer: nn.Conv2d | None = None
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A quantized layer, packed whatever dense would do, and the layer it was made of."""
    dense = (nn.Conv2d(20, 24, 3, padding=1) if layer is None else layer).eval()
    sparsifier = gs.Magnitude(pattern)
    sparsifier.prepare(dense)
    sparsifier.step()
    sparsifier.squash_mask()
    packed = copy.deepcopy(dense)
    config = gs.Int8DynamicActivationSparseWeightConfig(pattern)
    gs.sparsify_(packed, config, layout="format")
    assert is_packed(packed)
    return packed, dense


def bound(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """What Int8DynamicActivationSparseWeightConfig promises, and rounding in float32.

    The steps s_x and s_w are themselves rounded, hence 1.0001. Rounding: the integer sum becomes a
    float32, then come two products and the bias, each within 2^-24 of its result.
    """
    numbers = (None, layer.stride, layer.padding, layer.dilation)
    x, w = x.double(), layer.weight.detach().double()
    kept = (w != 0).double()
    inside = torch.ones_like(x)
    s_x = 1.0001 * x.abs().amax((1, 2, 3), keepdim=True) / 127
    s_w = 1.0001 * w.abs().amax((1, 2, 3)).reshape(1, -1, 1, 1) / 127
    rounding = (
        F.conv2d(x.abs(), kept, *numbers) * s_w / 2
        + s_x / 2 * F.conv2d(inside, w.abs(), *numbers)
        + s_x * s_w / 4 * F.conv2d(inside, kept, *numbers)
    )
    size = F.conv2d(x.abs(), w.abs(), *numbers) + rounding
    if layer.bias is not None:
        size = size + layer.bias.detach().double().abs().reshape(1, -1, 1, 1)
    return rounding + 8 * 2.0**-24 * size


LAYERS = (
    ((20, 24, 3), {"padding": 1}),
    ((20, 24, 3), {"padding": 1, "stride": 2, "bias": False}),
    ((64, 40, 1), {}),
    ((4, 16, 7), {"padding": 3, "stride": 2}),
    ((8, 9, (3, 2)), {"dilation": 2, "padding": (2, 1)}),
)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("sizes", "numbers"), LAYERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_error_is_within_the_bound(
    pattern: str, sizes: tuple, numbers: dict, channels_last: bool
) -> None:
    layer, dense = quantized(pattern, nn.Conv2d(*sizes, **numbers))
    x = torch.randn(3, sizes[0], 13, 17) * torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1, 1)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y = layer(x)
    assert y.stride() == dense(x).stride()
    want = copy.deepcopy(dense).double()(x.double())
    error = (y.double() - want).abs()
    assert bool((error <= bound(x, dense)).all())
    assert bool((error > 0).any())  # eight bits do lose something


def test_images_do_not_see_each_other() -> None:
    layer, _ = quantized()
    x = torch.randn(4, 20, 9, 9)
    x[1] = 0
    x[2, 7, 3, 3] = float("nan")
    y = layer(x)
    assert torch.equal(y[1], layer.bias.reshape(-1, 1, 1).expand_as(y[1]))
    assert bool(y[2].isnan().all())
    assert torch.equal(y[3], layer(x[3:])[0])
    assert torch.equal(y[0], layer(x[0]))  # three dimensions
    assert layer(x[:0]).shape == (0, 24, 9, 9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_row_computes_the_same(pattern: str) -> None:
    layer, _ = quantized(pattern, nn.Conv2d(64, 32, 3, padding=1))
    x = torch.randn(2, 64, 11, 11)
    y = layer(x)
    rows = [
        row.name
        for row in gs.kernels()
        if row.operation == "conv2d" and row.weight_dtype == "int8" and row.runs_here
    ]
    assert rows
    for name in rows:
        packed = torch.ops.gossamer.convert(layer.weight.packed, "bitmask")
        packed = torch.ops.gossamer.with_plan(packed, json.dumps([name] * 8))
        layer.weight = nn.Parameter(layer.weight._replace(packed), requires_grad=False)
        assert layer.weight.plan == [name] * 8
        assert torch.equal(layer(x), y)  # integer sums, and the same roundings behind them


def test_a_dense_copy_runs_where_the_plan_says_so() -> None:
    layer, dense = quantized()
    packed = torch.ops.gossamer.with_plan(
        layer.weight.packed, json.dumps([None] * 5 + ["dense"] * 3)
    )
    both = SparseWeight.from_quantized(
        packed, layer.weight.scale, dense=dense.weight.detach().clone()
    )
    mixed = copy.deepcopy(dense)
    mixed.weight = nn.Parameter(both, requires_grad=False)
    small, large = torch.randn(1, 20, 5, 5), torch.randn(2, 20, 16, 16)
    assert torch.equal(mixed(small), layer(small))
    torch.testing.assert_close(mixed(large), dense(large), rtol=1e-5, atol=1e-5)
    assert not torch.equal(mixed(large), layer(large))


def test_activation_and_residual() -> None:
    layer, _ = quantized()
    x, residual = torch.randn(2, 20, 9, 9), torch.randn(2, 24, 9, 9)
    y = conv2d(x, layer.weight, layer.bias, padding=1, activation="relu", residual=residual)
    torch.testing.assert_close(y, F.relu(layer(x) + residual), rtol=1e-5, atol=1e-5)


def test_copies_and_files(tmp_path: Path) -> None:
    layer, _ = quantized()
    x = torch.randn(2, 20, 9, 9)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer)
    assert torch.equal(F.conv2d(x, state["weight"], state["bias"], padding=1), y)
    other, _ = quantized()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    path = tmp_path / "model.safetensors"
    gs.save(layer, path)
    for target in (quantized()[0], nn.Conv2d(20, 24, 3, padding=1)):
        gs.load_into(target, path, layout="format")
        assert torch.equal(target(x), y)
        assert is_packed(target)


def test_copying_into_it() -> None:
    layer, _ = quantized()
    w = torch.where(torch.rand(24, 20, 3, 3) < 0.2, torch.randn(24, 20, 3, 3), 0.0)
    with torch.no_grad():
        layer.weight.copy_(w)
    q, scale = quantize_rows(w)
    assert torch.equal(layer.weight.to_dense(), q.float() * scale.reshape(-1, 1, 1, 1))
    gs.desparsify_(layer)
    assert torch.equal(layer.weight, q.float() * scale.reshape(-1, 1, 1, 1))


def test_gradients_pass_straight_through() -> None:
    layer, _ = quantized()
    layer.bias.requires_grad_()
    for activation, act in ((None, lambda y: y), ("silu", F.silu)):
        x = torch.randn(2, 20, 9, 9, requires_grad=True)
        layer.bias.grad = None
        conv2d(x, layer.weight, layer.bias, padding=1, activation=activation).sum().backward()
        y = layer(x).detach().requires_grad_()
        act(y).sum().backward()
        want = F.conv_transpose2d(y.grad, layer.weight.to_dense(), padding=1)
        torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.bias.grad, y.grad.sum((0, 2, 3)))


def test_compile_export_and_opcheck() -> None:
    layer, _ = quantized()
    x = torch.randn(2, 20, 9, 9)
    y = layer(x)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), y)
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), y)
    assert torch.equal(program.run_decompositions({}).module()(x), y)
    w = layer.weight
    numbers = ([3, 3], [1, 1], [1, 1], [1, 1])
    arguments = (x, w.packed, w.layout_code, 24, *numbers, layer.bias, 0, None, None, w.scale)
    torch.library.opcheck(torch.ops.gossamer.conv2d_autograd.default, arguments)


def test_a_measured_plan_is_no_slower_than_dense() -> None:
    torch.set_num_threads(1)
    _, dense = quantized("unstructured:0.9", nn.Conv2d(64, 64, 3, padding=1))
    gs.sparsify_(dense, CONFIG)
    report = gs.explain(dense)[""]
    if report.packed:
        assert "inputs quantized an image at a time" in report.reason
        call = 3e-3  # milliseconds that a call may cost more
        assert all(b.ms - call <= b.dense_ms / 0.97 for b in report.plan if b.kernel != "dense")
    else:
        assert type(dense.weight) is nn.Parameter


def test_fused_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(20, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()).eval()
    model[0] = quantized("unstructured:0.9", model[0])[1]
    gs.fuse_(model)
    plain = copy.deepcopy(model)
    gs.sparsify_(model, gs.Int8DynamicActivationSparseWeightConfig(), layout="format")
    assert is_packed(model[0])
    x = torch.randn(2, 20, 9, 9)
    error = (model(x).double() - plain.double()(x.double())).abs()
    assert bool((error <= bound(x, plain[0])).all())


def test_what_stays_plain_and_refusals() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3).half(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(4, 8, 3)
    )
    with torch.no_grad():
        model[2].weight[0, 0, 0] = float("nan")
        model[2].weight[1:] = 0
    gs.sparsify_(model, CONFIG, layout="format")
    reports = gs.explain(model)
    for name, why in (("0", "float16"), ("1", "groups"), ("2", "NaN")):
        assert not reports[name].packed
        assert why in reports[name].reason

    layer, _ = quantized()
    with pytest.raises(ValueError, match=r"cannot stand for torch\.float16"):
        copy.deepcopy(layer).half()
    w, x = layer.weight, torch.randn(2, 20, 9, 9)
    op = torch.ops.gossamer.conv2d
    numbers = ([3, 3], [1, 1], [1, 1], [1, 1])
    call = (w.packed, w.layout_code, 24, *numbers)
    with pytest.raises(ValueError, match=r"contiguous float32 \[24\]"):
        op(x, *call, None, 0, None, None, w.scale[:5])
    with pytest.raises(ValueError, match="x is float64, the packed weight is float32 in eight"):
        op(x.double(), *call, None, 0, None, None, w.scale)
