# SPDX-License-Identifier: BSD-3-Clause
"""int8 weights with inputs quantized as they come: error bound, copies, files, refusals."""

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
from gossamer._quantization import pack_quantized, quantize_rows
from sparsify_helpers import Conv1D, is_packed, mlp, prune_

PATTERNS = ("unstructured:0.5", "unstructured:0.9", "block:1x4:0.8", "2:4", "block:32x64:0.5")
CONFIG = gs.Int8DynamicActivationSparseWeightConfig()


def quantized(
    pattern: str = "unstructured:0.8", out: int = 96, inputs: int = 130
) -> tuple[nn.Linear, nn.Linear]:
    """A quantized layer, packed whatever dense would do, and the layer it was made of."""
    dense = nn.Linear(inputs, out)
    prune_(dense.weight, pattern)
    layer = copy.deepcopy(dense)
    config = gs.Int8DynamicActivationSparseWeightConfig(pattern)
    gs.sparsify_(layer, config, layout="format")
    assert is_packed(layer)
    return layer, dense


def bound(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """What Int8DynamicActivationSparseWeightConfig promises, and rounding in float32.

    The steps s_x and s_w are themselves rounded, hence 1.0001. Rounding: the integer sum becomes a
    float32, then come two products and the bias, each within 2^-24 of its result.
    """
    x, w = x.double(), w.double()
    kept = (w != 0).double()
    s_x = 1.0001 * x.abs().amax(-1, keepdim=True) / 127
    s_w = 1.0001 * w.abs().amax(-1, keepdim=True).mT / 127
    rounding = (
        x.abs() @ kept.mT * s_w / 2 + s_x / 2 * w.abs().sum(-1) + s_x * s_w / 4 * kept.sum(-1)
    )
    size = x.abs() @ w.abs().mT + rounding + (0 if bias is None else bias.double().abs())
    return rounding + 8 * 2.0**-24 * size


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_the_error_is_within_the_bound(pattern: str, tokens: int) -> None:
    layer, dense = quantized(pattern, 64, 128)
    x = torch.randn(tokens, 128) * torch.logspace(-3, 3, tokens).unsqueeze(1)
    want = F.linear(x.double(), dense.weight.double(), dense.bias.double())
    error = (layer(x).double() - want).abs()
    assert bool((error <= bound(x, dense.weight, dense.bias)).all())
    assert bool((error > 0).any())  # eight bits do lose something


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_computes_what_its_parts_say(pattern: str) -> None:
    layer, _ = quantized(pattern, 64, 128)
    x = torch.randn(5, 128)
    s_x = x.abs().amax(-1, keepdim=True) / 127
    p = torch.round(x / s_x)
    want = (s_x * p).double() @ layer.weight.to_dense().double().mT + layer.bias.double()
    # A tie of the rounding may fall to the other side: one step of one input.
    step = (s_x.double() * layer.weight.to_dense().double().abs().amax(-1)).detach()
    assert bool(((layer(x).double() - want).abs() <= 2e-5 + step).all())
    torch.testing.assert_close(layer(x).double(), want, rtol=0, atol=1e-3)


def test_rows_are_quantized_to_nearest() -> None:
    w = torch.randn(20, 33)
    w[3] = 0
    w[4] *= 1e-42  # subnormal: its scale has no reciprocal
    q, scale = quantize_rows(w)
    assert q.dtype is torch.int8
    assert int(q.abs().max()) == 127
    assert scale[3] == 0
    assert not bool(q[3].any())
    assert scale[4] == 0
    assert not bool(q[4].any())
    error = (w - scale.unsqueeze(1) * q).abs()
    assert bool((error <= 0.5001 * scale.unsqueeze(1) + 1e-37).all())


def test_what_rounds_to_zero_stays_kept() -> None:
    w = torch.zeros(4, 8)
    w[:, 0], w[:, 3] = 1.0, 1e-6
    packed, _ = pack_quantized(w, "unstructured:0.75")
    mask = torch.ops.gossamer.unpack_mask(packed, [4, 8])
    assert torch.equal(mask, w != 0)


def test_tokens_that_are_zero_or_not_finite() -> None:
    layer, _ = quantized()
    x = torch.randn(5, 130)
    x[1] = 0
    x[2, 7] = float("nan")
    x[3, 9] = float("-inf")
    y = layer(x)
    assert torch.equal(y[1], layer.bias)
    assert bool(y[2].isnan().all())
    assert bool(y[3].isnan().all())
    assert bool(y[[0, 4]].isfinite().all())
    assert torch.equal(y[4], layer(x[4:])[0])  # tokens do not see each other


def test_shapes_and_strides() -> None:
    layer, _ = quantized()
    x = torch.randn(2, 3, 130)
    y = layer(x)
    assert y.shape == (2, 3, 96)
    assert torch.equal(layer(x[:, 1]), y[:, 1])
    assert torch.equal(layer(x.mT.contiguous().mT), y)
    assert torch.equal(layer(x[0, 0]), y[0, 0])
    assert layer(x[:0]).shape == (0, 3, 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_floating_dtypes(dtype: torch.dtype) -> None:
    layer, _ = quantized()
    half = copy.deepcopy(layer).to(dtype)
    assert half.weight.dtype is dtype
    x = torch.randn(4, 130).to(dtype)
    y = half(x)
    assert y.dtype is dtype
    want = F.linear(x.float(), layer.weight, half.bias.float())
    assert torch.equal(y, want.to(dtype))
    with pytest.raises(ValueError, match=r"cannot stand for torch\.float64"):
        copy.deepcopy(layer).double()


def test_activation_and_residual() -> None:
    layer, _ = quantized()
    x, residual = torch.randn(4, 130), torch.randn(4, 96)
    y = gs.linear(x, layer.weight, layer.bias, activation="gelu", residual=residual)
    torch.testing.assert_close(y, F.gelu(layer(x) + residual), rtol=1e-5, atol=1e-5)


def test_copies_and_files(tmp_path: Path) -> None:
    layer, _ = quantized()
    x = torch.randn(4, 130)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer)
    assert torch.equal(F.linear(x, state["weight"], state["bias"]), y)
    other, _ = quantized()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)

    path = tmp_path / "model.safetensors"
    gs.save(layer, path)
    other, _ = quantized()
    gs.load_into(other, path, layout="format")
    assert torch.equal(other(x), y)
    plain = nn.Linear(130, 96)
    gs.load_into(plain, path, layout="format")
    assert torch.equal(plain(x), y)


def test_a_file_of_other_values_is_quantized_again(tmp_path: Path) -> None:
    layer, _ = quantized()
    source, _ = quantized()
    path = tmp_path / "dense.safetensors"
    gs.save(source, path, packed=False)
    gs.load_into(layer, path, layout="format")
    assert layer.weight.scale is not None
    torch.testing.assert_close(layer.weight.to_dense(), source.weight.to_dense())


def test_files_with_damaged_scales(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    layer, _ = quantized()
    path = tmp_path / "model.safetensors"
    gs.save(layer, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    faults = {
        "is missing": ({k: v for k, v in tensors.items() if k != "weight.scales"}, metadata),
        "finite": ({**tensors, "weight.scales": torch.full((96,), float("nan"))}, metadata),
        "scale is": ({**tensors, "weight.scales": torch.ones(95)}, metadata),
        "stand for": (tensors, {**metadata, "gossamer.scales.weight": "float64"}),
        "no packed weight": (tensors, {**metadata, "gossamer.scales.other": "float32"}),
    }
    for text, (arrays, words) in faults.items():
        save_file(arrays, path, words)
        with pytest.raises(ValueError, match=text):
            gs.load_into(nn.Linear(130, 96), path)


def test_copying_into_it() -> None:
    layer, _ = quantized()
    w = prune_(torch.randn(96, 130), "unstructured:0.8")
    with torch.no_grad():
        layer.weight.copy_(w)
    q, scale = quantize_rows(w)
    assert torch.equal(layer.weight.to_dense(), q.float() * scale.unsqueeze(1))
    dense = torch.empty(96, 130).copy_(layer.weight)
    assert torch.equal(dense, layer.weight.to_dense())


def test_gradients_pass_straight_through() -> None:
    layer, _ = quantized()
    x = torch.randn(4, 130, requires_grad=True)
    layer.bias.requires_grad_()
    for activation, act in ((None, lambda y: y), ("silu", F.silu)):
        x.grad = None
        gs.linear(x, layer.weight, layer.bias, activation=activation).sum().backward()
        y = layer(x).detach().requires_grad_()
        act(y).sum().backward()
        want = y.grad @ layer.weight.to_dense()
        torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-5)


def test_compile_export_and_opcheck() -> None:
    layer, _ = quantized()
    x = torch.randn(4, 130)
    y = layer(x)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), y)
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), y)
    assert torch.equal(program.run_decompositions({}).module()(x), y)
    weight = layer.weight
    arguments = (x, weight.packed, weight.layout_code, 96, weight.scale, layer.bias)
    torch.library.opcheck(torch.ops.gossamer.linear_autograd.default, arguments)


def test_explain_and_back() -> None:
    torch.set_num_threads(1)
    model = mlp("unstructured:0.98", (1024, 1024, 8))
    # With a dense copy it is packed wherever int8 gains at some token count: on any processor.
    gs.sparsify_(model, CONFIG, plan="model", memory="speed")
    report = gs.explain(model)["0"]
    assert report.packed
    assert "int8 weights, inputs quantized a token at a time" in report.reason
    assert report.dense_bytes == 4 * 1024 * 1024
    held = 0 if model[0].weight.dense is None else report.dense_bytes
    assert report.packed_bytes == model[0].weight.packed.numel() + 4 * 1024 + held
    assert "int8 with a scale a row" in repr(model[0].weight)
    assert all(bucket.kernel for bucket in report.plan)
    gs.desparsify_(model)
    assert type(model[0].weight) is nn.Parameter
    assert model[0].weight.dtype is torch.float32
    assert model[0].weight.requires_grad


def test_a_measured_plan_is_no_slower_than_dense() -> None:
    torch.set_num_threads(1)
    layer = nn.Linear(512, 2048)
    prune_(layer.weight, "unstructured:0.9")
    gs.sparsify_(layer, CONFIG)
    report = gs.explain(layer)[""]
    if report.packed:
        call = 3e-3  # milliseconds that a call may cost more
        assert all(bucket.ms - call <= bucket.dense_ms / 0.97 for bucket in report.plan)
    else:
        assert type(layer.weight) is nn.Parameter


def test_a_dense_copy_runs_where_the_plan_says_so() -> None:
    layer, dense = quantized()
    packed = torch.ops.gossamer.with_plan(
        layer.weight.packed, json.dumps([None] * 4 + ["dense"] * 4)
    )
    both = gs.SparseWeight.from_quantized(
        packed, layer.weight.scale, dense=dense.weight.detach().clone()
    )
    mixed = copy.deepcopy(dense)
    mixed.weight = nn.Parameter(both, requires_grad=False)
    for tokens in (1, 8, 32):
        x = torch.randn(tokens, 130)
        assert torch.equal(mixed(x), layer(x))
        y = gs.linear(x, mixed.weight, mixed.bias, activation="relu")
        assert torch.equal(y, layer(x).relu())
    x = torch.randn(64, 130)
    assert torch.equal(mixed(x), dense(x))


def test_what_stays_plain() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), Conv1D(8, 8))
    for module in model:
        prune_(module.weight, "unstructured:0.5")
    model[1].double()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    gs.sparsify_(model, CONFIG, layout="format")
    reports = gs.explain(model)
    assert reports["0"].packed
    assert not reports["1"].packed
    assert "torch.float64" in reports["1"].reason
    assert not reports["2"].packed
    assert "NaN" in reports["2"].reason
    assert not reports["3"].packed
    assert "[in, out]" in reports["3"].reason


def test_refusals() -> None:
    layer, _ = quantized()
    weight = layer.weight
    op = torch.ops.gossamer.linear
    x = torch.randn(2, 130)
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16"):
        op(x.double(), weight.packed, weight.layout_code, 96, weight.scale)
    with pytest.raises(ValueError, match=r"contiguous float32 \[96\]"):
        op(x, weight.packed, weight.layout_code, 96, weight.scale[:5])
    with pytest.raises(ValueError, match="bias is float16, x is float32"):
        op(x, weight.packed, weight.layout_code, 96, weight.scale, layer.bias.half())
    plain = gs.SparseWeight.from_dense(prune_(torch.randn(96, 130)))
    with pytest.raises(ValueError, match="scales belong to a single"):
        op(x, plain.packed, plain.layout_code, 96, weight.scale)
    with pytest.raises(ValueError, match="quantize='int4'"):
        gs.SparseConfig(quantize="int4")
    with pytest.raises(NotImplementedError, match="packed weight cannot be moved"):
        layer.weight.to("meta")
