# SPDX-License-Identifier: BSD-3-Clause
"""int8 layers whose inputs have a calibrated scale, and int8 results for the layer behind."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import opcheck

import gossamer as gs
from gossamer._weight_convolution import conv2d
from sparsify_helpers import is_packed, mlp, prune_

ops = torch.ops.gossamer
SCALE = 3.0 / 127


def linear_layer(pattern: str = "unstructured:0.8", scale: float = SCALE) -> nn.Linear:
    layer = nn.Linear(130, 96)
    prune_(layer.weight, pattern)
    gs.sparsify_(layer, gs.Int8StaticActivationSparseWeightConfig(scale, pattern), layout="format")
    assert is_packed(layer)
    return layer


def convolution(scale: float = SCALE, **numbers: object) -> nn.Conv2d:
    layer = nn.Conv2d(20, 24, 3, padding=1, **numbers).eval()
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    gs.sparsify_(layer, gs.Int8StaticActivationSparseWeightConfig(scale), layout="format")
    assert is_packed(layer)
    return layer


def rounded(x: Tensor, scale: float = SCALE) -> Tensor:
    """x as an int8 layer sees it."""
    return torch.round(x.double() / scale).clamp(-127, 127) * scale


def close_to(y: Tensor, x: Tensor, layer: nn.Module, scale: float = SCALE) -> None:
    """Equal to the product of the rounded inputs; a tie may fall to the other side.

    One step of one input changes a result by at most s_x·max |w|; the rest is rounding of the
    float32 epilogue. All but a few results agree far better than a step.
    """
    dense = copy.deepcopy(layer)
    dense.weight = nn.Parameter(layer.weight.to_dense().double())
    dense.bias = nn.Parameter(layer.bias.double())
    error = (y.double() - dense(rounded(x, scale))).abs().detach()
    step = scale * float(layer.weight.to_dense().abs().max())
    assert float(error.max()) <= 1.01 * step + 1e-5
    assert float((error <= 1e-5).double().mean()) > 0.9


@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("pattern", ["unstructured:0.8", "block:1x4:0.8", "2:4", "fanin:0.75"])
def test_linear_rounds_at_the_scale(pattern: str, tokens: int) -> None:
    layer = linear_layer(pattern)
    assert layer.weight.input_scale == pytest.approx(SCALE, rel=1e-6)
    x = torch.randn(tokens, 130)
    x[0, 0] = 100.0  # cut off at 127 steps
    close_to(layer(x), x, layer)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("numbers", [{}, {"stride": 2}])
def test_convolutions_round_at_the_scale(numbers: dict, channels_last: bool) -> None:
    layer = convolution(**numbers)
    x = torch.randn(3, 20, 9, 11)
    x[0, 0, 4, 4] = -100.0
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    close_to(y, x, layer)


def test_results_do_not_depend_on_how_inputs_are_cut() -> None:
    layer, images = linear_layer(), convolution()
    x = torch.randn(2, 50, 130)
    y = layer(x)
    for t in range(50):
        assert torch.equal(layer(x[:, t]), y[:, t])
    x = torch.randn(4, 20, 9, 9)
    assert torch.equal(images(x)[2], images(x[2]))


def test_what_is_not_finite_stays_not_finite() -> None:
    layer, images = linear_layer(), convolution()
    x = torch.randn(4, 130)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    y = layer(x)
    assert bool(y[1:3].isnan().all())
    assert bool(y[[0, 3]].isfinite().all())
    x = torch.randn(3, 20, 9, 9)
    x[1, 0, 0, 0] = float("inf")
    y = images(x)
    assert bool(y[1].isnan().all())
    assert bool(y[[0, 2]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_floating_dtypes(dtype: torch.dtype) -> None:
    layer = linear_layer()
    half = copy.deepcopy(layer).to(dtype)
    assert half.weight.input_scale == layer.weight.input_scale
    x = torch.randn(4, 130).to(dtype)
    want = F.linear(x.float(), layer.weight, half.bias.float())
    assert torch.equal(half(x), want.to(dtype))


def test_calibration_finds_the_largest_of_all_batches() -> None:
    model = mlp("unstructured:0.5").train()
    batches = [torch.randn(5, 64), 3 * torch.randn(5, 64)]
    scales = gs.calibrate_input_scales(model, batches)
    assert model.training
    assert set(scales) == {"0", "2"}
    assert scales["0"] == pytest.approx(max(float(b.abs().max()) for b in batches) / 127)
    hidden = max(float(model[0](b).relu().detach().max()) for b in batches)
    assert scales["2"] == pytest.approx(hidden / 127)
    again = gs.calibrate_input_scales(model, [(batch,) for batch in batches])
    assert again == scales
    with pytest.raises(ValueError, match="there are no batches"):
        gs.calibrate_input_scales(model, [])
    with pytest.raises(ValueError, match="input of '0' holds NaN"):
        gs.calibrate_input_scales(model, [torch.full((1, 64), float("nan"))])


def test_a_calibrated_model() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32), nn.Linear(32, 4)
    ).eval()
    for name in (0, 3):
        with torch.no_grad():
            weight = model[name].weight
            weight.mul_(torch.rand_like(weight) < 0.3)
    dense = copy.deepcopy(model)
    x = torch.randn(8, 3, 8, 8)
    scales = gs.calibrate_input_scales(model, [x])
    del scales["4"]
    gs.sparsify_(model, gs.Int8StaticActivationSparseWeightConfig(scales), layout="format")
    reports = gs.explain(model)
    assert [reports[name].packed for name in ("0", "3", "4")] == [True, True, False]
    assert "input_scales has none for it" in reports["4"].reason
    assert model[3].weight.input_scale == pytest.approx(scales["3"])
    # Eight bits of each input and weight: far from dense it would be a mistake.
    got, want = model(x), dense(x)
    assert float(((got - want).norm() / want.norm()).detach()) < 0.05


def test_explain_says_so() -> None:
    torch.set_num_threads(1)
    model = mlp("unstructured:0.98", (1024, 1024, 8))
    config = gs.Int8StaticActivationSparseWeightConfig(0.05)
    gs.sparsify_(model, config, plan="model", memory="speed")
    report = gs.explain(model)["0"]
    assert report.packed
    assert "int8 weights, inputs quantized at the scale 0.05" in report.reason


def test_copies_and_files(tmp_path: Path) -> None:
    for layer, x in (
        (linear_layer(), torch.randn(4, 130)),
        (convolution(), torch.randn(2, 20, 9, 9)),
    ):
        y = layer(x)
        scale = layer.weight.input_scale
        assert torch.equal(copy.deepcopy(layer)(x), y)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        assert torch.load(buffer)["weight"].input_scale == scale
        other = linear_layer(scale=0.1) if x.dim() == 2 else convolution(scale=0.1)
        assert not torch.equal(other(x), y)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), y)
        path = tmp_path / "model.safetensors"
        gs.save(layer, path)
        plain = nn.Linear(130, 96) if x.dim() == 2 else nn.Conv2d(20, 24, 3, padding=1)
        for target in (linear_layer(scale=0.1) if x.dim() == 2 else convolution(0.1), plain):
            gs.load_into(target, path, layout="format")
            assert target.weight.input_scale == scale
            assert torch.equal(target(x), y)
        # A file of dense values is rounded anew; the scale of the inputs is the model's own.
        gs.save(layer, path, packed=False)
        gs.load_into(target, path, layout="format")
        assert target.weight.input_scale == scale


def test_files_with_damaged_scales(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    gs.save(linear_layer(), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    key = "gossamer.scales.weight"
    assert metadata[key].startswith("float32, input scale 0.0236")
    for number, why in (("wide", "no number"), ("", "no number"), ("0", "is 0"), ("-1", "-1")):
        save_file(tensors, path, {**metadata, key: f"float32, input scale {number}"})
        with pytest.raises(ValueError, match=why):
            gs.load_into(nn.Linear(130, 96), path)


def test_gradients_pass_straight_through() -> None:
    layer = linear_layer()
    layer.bias.requires_grad_()
    images = convolution()
    for activation, act in ((None, lambda y: y), ("silu", F.silu)):
        x = torch.randn(4, 130, requires_grad=True)
        layer.bias.grad = None
        gs.linear(x, layer.weight, layer.bias, activation=activation).sum().backward()
        y = layer(x).detach().requires_grad_()
        act(y).sum().backward()
        torch.testing.assert_close(x.grad, y.grad @ layer.weight.to_dense(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.bias.grad, y.grad.sum(0))
        x = torch.randn(2, 20, 9, 9, requires_grad=True)
        residual = torch.randn(2, 24, 9, 9, requires_grad=True)
        y = conv2d(x, images.weight, padding=1, activation=activation, residual=residual)
        y.sum().backward()
        y = (conv2d(x, images.weight, padding=1) + residual).detach().requires_grad_()
        act(y).sum().backward()
        want = F.conv_transpose2d(y.grad, images.weight.to_dense(), padding=1)
        torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(residual.grad, y.grad)


def test_compile_and_export() -> None:
    for layer, x in (
        (linear_layer(), torch.randn(4, 130)),
        (convolution(), torch.randn(2, 20, 9, 9)),
    ):
        y = layer(x)
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), y)
        program = torch.export.export(layer, (x,))
        assert torch.equal(program.module()(x), y)
        assert torch.equal(program.run_decompositions({}).module()(x), y)


def test_opcheck() -> None:
    layer, images = linear_layer(), convolution()
    x, w = torch.randn(4, 130), layer.weight
    for tokens, y_scale in ((x, 0.0), (x, 0.1), (x.to(torch.int8), 0.0)):
        call = (tokens, w.packed, w.layout_code, 96, w.scale, w.input_scale, y_scale, torch.float32)
        opcheck(ops.linear_int8.default, call, {"bias": layer.bias.detach(), "activation": 1})
    call = (x.requires_grad_(), w.packed, w.layout_code, 96, w.scale, w.input_scale, 0.0)
    opcheck(ops.linear_int8_autograd.default, (*call, torch.float32, layer.bias, 4))
    x, w = torch.randn(2, 20, 9, 9), images.weight
    numbers = ([3, 3], [1, 1], [1, 1], [1, 1])
    weight = (w.packed, w.layout_code, 24, *numbers, w.scale, w.input_scale)
    for maps, y_scale in ((x, 0.0), (x, 0.1), (x.to(torch.int8), 0.0), (x[0], 0.1)):
        opcheck(ops.conv2d_int8.default, (maps, *weight, y_scale, images.bias.detach()))
    last = x.contiguous(memory_format=torch.channels_last)
    opcheck(ops.conv2d_int8.default, (last, *weight, 0.1))
    opcheck(ops.conv2d_int8_autograd.default, (x.requires_grad_(), *weight, 0.0, images.bias, 4))


def test_int8_from_layer_to_layer() -> None:
    first, second = linear_layer(), nn.Linear(96, 40)
    prune_(second.weight, "unstructured:0.7")
    config = gs.Int8StaticActivationSparseWeightConfig(0.02)
    gs.sparsify_(second, config, layout="format")
    for tokens in (1, 9, 70):
        x = torch.randn(tokens, 130)
        floating = gs.linear(x, first.weight, first.bias, activation="gelu")
        q = gs.linear(x, first.weight, first.bias, activation="gelu", out_scale=0.02)
        assert q.dtype is torch.int8
        steps = (floating / second.weight.input_scale).clamp(-127, 127)
        assert bool(((q - steps).abs() <= 0.5001).all())
        # Rounding what the second layer would have rounded itself changes nothing but ties.
        y = F.linear(q, second.weight, second.bias)
        assert y.dtype is torch.float32
        close_to(y, q.float() * second.weight.input_scale, second, second.weight.input_scale)
        torch.testing.assert_close(y, second(floating), rtol=0, atol=0.01)
    assert gs.linear(x[:0], first.weight, first.bias, out_scale=0.02).shape == (0, 96)
    # The result's int8 ends gradients; behind int8 inputs those of the bias go on.
    assert not q.requires_grad
    second.bias.grad = None
    gs.linear(q, second.weight, second.bias, activation="silu").sum().backward()
    y = F.linear(q, second.weight, second.bias).detach().requires_grad_()
    F.silu(y).sum().backward()
    torch.testing.assert_close(second.bias.grad, y.grad.sum(0))


@pytest.mark.parametrize("channels_last", [False, True])
def test_int8_from_convolution_to_convolution(channels_last: bool) -> None:
    first, second = convolution(), nn.Conv2d(24, 8, 3, padding=1)
    with torch.no_grad():
        second.weight.mul_(torch.rand_like(second.weight) < 0.3)
    config = gs.Int8StaticActivationSparseWeightConfig(0.02)
    gs.sparsify_(second, config, layout="format")
    x = torch.randn(2, 20, 9, 9)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    call = {"bias": first.bias, "padding": 1, "activation": "relu"}
    floating = conv2d(x, first.weight, **call)
    q = conv2d(x, first.weight, **call, out_scale=0.02)
    assert q.dtype is torch.int8
    assert q.stride() == floating.stride()
    assert bool(((q - (floating / 0.02).clamp(-127, 127)).abs() <= 0.5001).all())
    y = second(q)
    assert y.dtype is torch.float32
    assert y.stride() == second(floating).stride()
    torch.testing.assert_close(y, second(floating), rtol=0, atol=0.02)
    assert torch.equal(second(q[0]), y[0])


def test_int8_results_under_autocast() -> None:
    layer, images = linear_layer(), convolution()
    x, maps = torch.randn(4, 130).bfloat16(), torch.randn(2, 20, 9, 9).bfloat16()
    added, planes = torch.randn(4, 96).bfloat16(), torch.randn(2, 24, 9, 9).bfloat16()
    bias = layer.bias.detach().bfloat16()

    def both(cast: torch.dtype) -> tuple[Tensor, Tensor]:
        y = gs.linear(
            x.to(cast), layer.weight, bias.to(cast), residual=added.to(cast), out_scale=0.02
        )
        call = {"padding": 1, "residual": planes.to(cast), "out_scale": 0.02}
        return y, conv2d(maps.to(cast), images.weight, images.bias, **call)

    want = both(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = both(torch.bfloat16)
    for y, same in zip(got, want, strict=True):
        assert y.dtype is torch.int8
        assert torch.equal(y, same)


def test_compiled_requantization() -> None:
    first, second = linear_layer(), nn.Linear(96, 40)
    prune_(second.weight, "unstructured:0.7")
    gs.sparsify_(second, gs.Int8StaticActivationSparseWeightConfig(0.02), layout="format")

    def block(x: Tensor) -> Tensor:
        q = gs.linear(x, first.weight, first.bias, activation="relu", out_scale=0.02)
        return F.linear(q, second.weight, second.bias)

    x = torch.randn(5, 130)
    with torch.no_grad():
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), block(x))


def test_refusals() -> None:
    layer = linear_layer()
    w, x = layer.weight, torch.randn(2, 130)
    for scale in (0.0, -1.0, float("nan"), float("inf"), 1e-45):
        with pytest.raises(ValueError, match="out_scale is"):
            gs.linear(x, w, out_scale=scale)
        with pytest.raises(ValueError, match="input_scales"):
            gs.Int8StaticActivationSparseWeightConfig(scale)
        if scale:
            with pytest.raises(ValueError, match=r"input_scales\['a'\]"):
                gs.Int8StaticActivationSparseWeightConfig({"a": scale})
    with pytest.raises(
        ValueError, match=r"output_dtype torch\.float32 and out_scale 0\.1 are both"
    ):
        gs.linear(x, w, output_dtype=torch.float32, out_scale=0.1)
    with pytest.raises(ValueError, match="belong to quantize='int8'"):
        gs.SparseConfig(input_scales=0.1)
    config = gs.Int8StaticActivationSparseWeightConfig({"0": 0.1, "other": 0.1})
    with pytest.raises(ValueError, match="'other' is no linear layer"):
        gs.sparsify_(mlp(), config)
    op = ops.linear_int8
    call = (w.packed, w.layout_code, 96, w.scale)
    with pytest.raises(ValueError, match="x is int8 and x_scale is 0"):
        op(x.to(torch.int8), *call, 0.0, 0.0, torch.float32)
    with pytest.raises(ValueError, match="x is float32 and dtype bfloat16"):
        op(x, *call, 0.1, 0.0, torch.bfloat16)
    with pytest.raises(ValueError, match="y_scale is -1"):
        op(x, *call, 0.1, -1.0, torch.float32)
    plain = gs.SparseWeight.from_dense(prune_(torch.randn(96, 130)))
    with pytest.raises(ValueError, match="int8 weights on the CPU"):
        gs.linear(x, plain, out_scale=0.1)
    dynamic = gs.SparseWeight.from_quantized(w.packed, w.scale)
    with pytest.raises(ValueError, match="x is int8"):
        F.linear(torch.zeros(2, 130, dtype=torch.int8), dynamic)
