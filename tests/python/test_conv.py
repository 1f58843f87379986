# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions with packed weights: values, formats, gradients, programs, models, files."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import opcheck

import gossamer as gs
from gossamer import _ops
from gossamer._activation import apply_activation
from gossamer._weight_convolution import conv2d
from gossamer.weight import SparseWeight

ops = torch.ops.gossamer
LAYOUTS = ["bitmask", "kcsr64", "kcsr128", "kcsr256"]
GEOMETRIES = [
    # out, in, kernel, stride, padding, dilation
    (24, 40, (1, 1), 1, 0, 1),
    (24, 40, (1, 1), (2, 1), 0, 1),
    (20, 12, (3, 3), 1, 1, 1),
    (8, 16, (3, 3), 2, (1, 0), 1),
    (16, 3, (7, 7), 2, 3, 1),
    (7, 5, (3, 2), 1, "same", 1),
    (7, 5, (2, 4), 1, "same", (1, 3)),
    (6, 4, (5, 3), (3, 2), "valid", (2, 1)),
    (1, 1, (1, 1), 1, 0, 1),
    (5, 130, (3, 3), 1, (0, 2), 1),
]


def sparse_filters(out: int, inputs: int, kernel: tuple[int, int], keep: float = 0.25) -> Tensor:
    w = torch.randn(out, inputs, *kernel)
    return w * (torch.rand_like(w) < keep)


def assert_conv(y: Tensor, x: Tensor, w: Tensor, *added: Tensor, numbers: tuple = ()) -> None:
    """Any order of summation errs by (K + terms)·2^-24·(Σ|x||w| + |added|) (Higham 2002, 4.4)."""
    exact = F.conv2d(x.double(), w.double(), None, *numbers)
    magnitude = F.conv2d(x.double().abs(), w.double().abs(), None, *numbers)
    for term in added:
        exact = exact + term.double()
        magnitude = magnitude + term.double().abs()
    bound = (w[0].numel() + 2 + len(added)) * 2.0**-24 * magnitude
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= bound).all())


def images(*shape: int, last: bool = False) -> Tensor:
    x = torch.randn(*shape)
    return x.to(memory_format=torch.channels_last) if last else x


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_equals_dense(layout: str, geometry: tuple) -> None:
    out, inputs, kernel, *numbers = geometry
    numbers = tuple(numbers)
    w = sparse_filters(out, inputs, kernel)
    packed = SparseWeight.from_dense(w, layout=layout)
    bias = torch.randn(out)
    for count in (0, 1, 3):
        for last in (False, True):
            x = images(count, inputs, 17, 15, last=last)
            y = F.conv2d(x, packed, None, *numbers)
            assert_conv(y, x, w, numbers=numbers)
            is_last = last and inputs > 1 and count > 0
            memory = torch.channels_last if is_last else torch.contiguous_format
            assert y.is_contiguous(memory_format=memory)
            y = F.conv2d(x, packed, bias, *numbers)
            assert_conv(y, x, w, bias[:, None, None], numbers=numbers)
    single = torch.randn(inputs, 17, 15)
    y = F.conv2d(single, packed, bias, *numbers)
    assert_conv(y, single, w, bias[:, None, None], numbers=numbers)


def test_inputs_of_any_strides() -> None:
    w = sparse_filters(8, 6, (3, 3))
    packed = SparseWeight.from_dense(w, layout="kcsr128")
    wide = torch.randn(2, 12, 20, 18)
    for x in (
        wide[:, ::2],
        wide[:, :6, ::2, 1::2],
        wide[:, :6].transpose(2, 3),
        wide.to(memory_format=torch.channels_last)[:, 3:9],
        torch.randn(1, 6, 9, 9).expand(3, 6, 9, 9),
    ):
        y = F.conv2d(x, packed, padding=1)
        assert_conv(y, x, w, numbers=(1, 1))


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu", "relu2"])
@pytest.mark.parametrize("last", [False, True])
def test_epilogue(activation: str | None, last: bool) -> None:
    w, bias = sparse_filters(8, 6, (3, 3)), torch.randn(8)
    packed = SparseWeight.from_dense(w, layout="kcsr64")
    x, residual = images(2, 6, 9, 8, last=last), images(2, 8, 9, 8, last=not last)
    y = conv2d(x, packed, bias, padding=1, activation=activation, residual=residual)
    code = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "relu2": 5}[activation]
    plain = F.conv2d(x.double(), w.double(), bias.double(), padding=1) + residual.double()
    exact = apply_activation(plain, code)
    # Sums err as in assert_conv; no activation's slope passes 1.13 (that of squared ReLU is twice
    # the sum), and its own rounding adds to the last place.
    scale = F.conv2d(x.double().abs(), w.double().abs(), None, padding=1)
    scale = scale + residual.abs() + bias.abs()[:, None, None]
    slope = 2 * plain.abs() + 1 if activation == "relu2" else 1.13
    bound = (w[0].numel() + 4) * 2.0**-24 * slope * scale + 2.0**-21 * (1 + exact.abs())
    assert bool(((y.double() - exact).abs() <= bound).all())
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_nan_at_pruned_positions_is_not_read() -> None:
    w = torch.zeros(4, 6, 1, 1)
    w[:, :3] = torch.randn(4, 3, 1, 1)
    packed = SparseWeight.from_dense(w)
    x = torch.randn(2, 6, 5, 5)
    x[:, 3:] = float("nan")
    assert_conv(F.conv2d(x, packed), x[:, :3], w[:, :3])


def test_all_pruned_and_all_kept() -> None:
    x = torch.randn(2, 6, 5, 5)
    nothing = SparseWeight.from_dense(torch.zeros(4, 6, 3, 3), "unstructured:1", layout="kcsr128")
    bias = torch.randn(4)
    assert torch.equal(
        F.conv2d(x, nothing, bias), bias[:, None, None].expand(2, 4, 3, 3).contiguous()
    )
    w = torch.randn(4, 6, 3, 3)
    everything = SparseWeight.from_dense(w, "unstructured:0", layout="kcsr128")
    assert_conv(F.conv2d(x, everything), x, w)


@pytest.mark.parametrize("pattern", ["2:4", "fanin:0.75", "block:4x4:0.5", "vnm:8:2:8"])
def test_every_pattern_is_computed(pattern: str) -> None:
    w = torch.randn(16, 8, 3, 3)
    matrix = w.permute(0, 2, 3, 1).reshape(16, -1)
    mask = ops.magnitude_mask(matrix, pattern, "tensor")
    w = (matrix * mask).reshape(16, 3, 3, 8).permute(0, 3, 1, 2).contiguous()
    packed = SparseWeight.from_dense(w, pattern)
    assert packed.pattern.split(":")[0] == pattern.split(":")[0]
    assert torch.equal(packed.to_dense(), w)
    x = torch.randn(2, 8, 9, 9)
    assert_conv(F.conv2d(x, packed, None, 1, 1), x, w, numbers=(1, 1))


@pytest.mark.parametrize(("pattern", "channels"), [("2:4", 6), ("2:4", 3), ("vnm:4:2:8", 6)])
def test_groups_that_would_cross_taps(pattern: str, channels: int) -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(channels, 8, 3)})
    pruner = gs.Magnitude(pattern)
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    conv = model["conv"]
    w = conv.weight.detach().clone()
    packed = SparseWeight.from_dense(w, pattern)
    kind, sparsity = packed.pattern.split(":")
    assert kind == "unstructured"
    assert float(sparsity) == pytest.approx(float((w == 0).double().mean()))
    assert torch.equal(packed.to_dense(), w)
    x = torch.randn(2, channels, 9, 9)
    assert_conv(F.conv2d(x, packed), x, w)
    gs.sparsify_(model, pattern, layout="kcsr128")
    assert is_packed(conv)
    reason = gs.explain(model)["conv"].reason
    assert f"it satisfies {pattern} tap by tap, and is packed as unstructured" in reason
    assert f"its {channels} input channels" in reason


def test_a_tap_that_breaks_its_groups_is_named() -> None:
    w = torch.zeros(4, 6, 2, 2)
    w[2, :3, 1, 0] = 1.0
    with pytest.raises(ValueError, match=r"batch 2, row 2, columns 0–3: 3 .*a batch is a tap"):
        SparseWeight.from_dense(w, "2:4")
    assert SparseWeight.from_dense(w).pattern.startswith(("unstructured", "fanin", "block"))


def test_one_tap_has_a_partial_group_like_a_matrix() -> None:
    w = torch.zeros(4, 6, 1, 1)
    w[:, ::2] = torch.randn(4, 3, 1, 1)
    packed = SparseWeight.from_dense(w, "2:4")
    assert packed.pattern == "2:4"
    x = torch.randn(2, 6, 5, 5)
    assert_conv(F.conv2d(x, packed), x, w)


def test_threads_do_not_change_the_result() -> None:
    w = sparse_filters(32, 24, (3, 3))
    packed = SparseWeight.from_dense(w, layout="kcsr128")
    x = torch.randn(3, 24, 14, 14)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(F.conv2d(x, packed, None, 1, 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# --- Refusals -------------------------------------------------------------------------------------


def test_what_is_not_computed_is_refused() -> None:
    packed = SparseWeight.from_dense(sparse_filters(8, 6, (3, 3)))
    x = torch.randn(2, 6, 9, 9)
    with pytest.raises(NotImplementedError, match="groups is 2"):
        F.conv2d(torch.randn(2, 12, 9, 9), packed, groups=2)
    with pytest.raises(ValueError, match="takes 6 channels"):
        F.conv2d(torch.randn(2, 5, 9, 9), packed)
    with pytest.raises(ValueError, match="larger than the padded input"):
        F.conv2d(x[..., :2], packed)
    with pytest.raises(ValueError, match="convert x with"):
        F.conv2d(x.double(), packed)
    with pytest.raises(ValueError, match="8 filters"):
        F.conv2d(x, packed, torch.randn(7))
    with pytest.raises(ValueError, match="'same' is not defined for a stride"):
        F.conv2d(x, packed, None, 2, "same")
    with pytest.raises(ValueError, match="stride"):
        F.conv2d(x, packed, None, 0)
    with pytest.raises(ValueError, match=r"\[images, channels, height, width\]"):
        F.conv2d(x[0, 0], packed)
    with pytest.raises(ValueError, match="conv2d"):
        F.linear(torch.randn(2, 54), packed)
    with pytest.raises(ValueError, match="convolution"):
        torch.randn(2, 8) @ packed
    with pytest.raises(NotImplementedError, match=r"aten\.convolution"):
        F.conv_transpose2d(x, packed)
    with pytest.raises(NotImplementedError, match="cannot be swapped"):
        packed.transpose(2, 3)
    with pytest.raises(ValueError, match="no convolution"):
        F.conv2d(x, SparseWeight.from_dense(torch.eye(6)))
    with pytest.raises(ValueError, match="transposed"):
        SparseWeight.from_dense(torch.ones(2, 2, 3, 3), transposed=True)


def test_other_dtypes_are_stored_but_not_computed() -> None:
    w = sparse_filters(8, 6, (3, 3))
    half = SparseWeight.from_dense(w.half())
    assert torch.equal(half.to_dense(), w.half())
    with pytest.raises(RuntimeError, match="float32 and int8 are accepted"):
        F.conv2d(torch.randn(1, 6, 9, 9).half(), half)


# --- Gradients, programs --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradient_of_the_input(geometry: tuple) -> None:
    out, inputs, kernel, *numbers = geometry
    w = sparse_filters(out, inputs, kernel)
    packed = SparseWeight.from_dense(w, layout="kcsr128")
    x = torch.randn(2, inputs, 11, 13, requires_grad=True)
    bias = torch.randn(out, requires_grad=True)
    y = F.conv2d(x, packed, bias, *numbers)
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, bias), grad)
    x64 = x.detach().double().requires_grad_()
    b64 = bias.detach().double().requires_grad_()
    want = torch.autograd.grad(F.conv2d(x64, w.double(), b64, *numbers), (x64, b64), grad.double())
    scale = torch.autograd.grad(
        F.conv2d(x64, w.double().abs(), b64, *numbers), (x64, b64), grad.double().abs()
    )
    terms = (out * kernel[0] * kernel[1] + 2, y[:, 0].numel() + 2)
    for mine, exact, magnitude, count in zip(got, want, scale, terms, strict=True):
        assert bool(((mine.double() - exact).abs() <= count * 2.0**-24 * magnitude).all())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [[1, 1], [0, 1, 2, 0]])
def test_opcheck(last: bool, padding: list[int]) -> None:
    packed = ops.pack(sparse_filters(8, 6, (3, 3)), None, "", "kcsr128", False, "w")
    code = _ops.info(packed)["layout_code"]
    x = images(2, 6, 9, 9, last=last)
    numbers = (8, [3, 3], [1, 2], padding, [1, 1])
    bias = torch.randn(8)
    opcheck(ops.conv2d.default, (x, packed, code, *numbers), {"bias": bias, "activation": 1})
    opcheck(ops.conv2d.default, (x[0].contiguous(), packed, code, *numbers))
    opcheck(ops.conv2d_autograd.default, (x.requires_grad_(), packed, code, *numbers, bias, 2))
    dense = ops.unpack(packed, [8, 6, 3, 3], torch.float32)
    plan = (packed, dense, [1, 2], padding, [1, 1], last, True, 0, "model", "default", "", "off")
    # It answers with a string: no shapes to derive, schema and dispatch to check.
    utilities = ("test_schema", "test_autograd_registration")
    opcheck(ops.plan_conv2d.default, plan, test_utils=utilities)


def small_cnn(channels_last: bool = False) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding="valid", bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 3, groups=32, padding="same"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            with torch.no_grad():
                module.weight *= torch.rand_like(module.weight) < 0.2
    if channels_last:
        return model.to(memory_format=torch.channels_last)
    return model


def assert_model(y: Tensor, model: nn.Module, x: Tensor) -> None:
    """Five layers of at most 288 inputs, each within n·2^-24 of a scale below ten."""
    want = copy.deepcopy(model).double()(x.double())
    torch.testing.assert_close(y.double(), want, rtol=0, atol=5 * 288 * 2.0**-24 * 10)


def is_packed(module: nn.Module) -> bool:
    return isinstance(module.weight, SparseWeight)


@pytest.mark.parametrize("last", [False, True])
def test_compile_and_export(last: bool) -> None:
    plain = small_cnn(last)
    model = gs.sparsify_(copy.deepcopy(plain), layout="kcsr128")
    x = images(2, 3, 16, 16, last=last)
    with torch.no_grad():
        assert_model(torch.compile(model, fullgraph=True, backend="aot_eager")(x), plain, x)
        program = torch.export.export(model, (x,))
        assert_model(program.module()(x), plain, x)
        assert_model(program.run_decompositions({}).module()(x), plain, x)


def test_compiled_gradient() -> None:
    plain = small_cnn()
    model = gs.sparsify_(copy.deepcopy(plain), layout="kcsr128")
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    (eager,) = torch.autograd.grad(model(x).square().sum(), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    (traced,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(traced, eager)


def test_under_transforms_and_autocast() -> None:
    w = sparse_filters(8, 6, (3, 3))
    packed = SparseWeight.from_dense(w, layout="kcsr128")
    x = torch.randn(4, 2, 6, 9, 9)
    y = torch.func.vmap(lambda part: F.conv2d(part, packed, None, 1, 1))(x)
    for mine, part in zip(y, x, strict=True):
        assert_conv(mine, part, w, numbers=(1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.conv2d(x[0], packed).dtype == torch.bfloat16


# --- The weight -----------------------------------------------------------------------------------


def test_weight_keeps_its_shape_and_kernel() -> None:
    w = sparse_filters(8, 6, (3, 5))
    packed = SparseWeight.from_dense(w, layout="kcsr64")
    assert tuple(packed.shape) == (8, 6, 3, 5)
    assert packed.kernel_size == (3, 5)
    assert SparseWeight.from_dense(torch.eye(4)).kernel_size is None
    assert torch.equal(packed.to_dense(), w)
    assert torch.equal(packed.mask(), w != 0)
    assert _ops.info(packed.packed)["kernel"] == [3, 5]
    for twin in (
        copy.deepcopy(packed),
        pickle.loads(pickle.dumps(packed)),
        packed.clone(),
        packed.detach(),
        packed.to(torch.float64),
        packed.canonical(),
    ):
        assert isinstance(twin, SparseWeight)
        assert twin.kernel_size == (3, 5)
        assert torch.equal(twin.to_dense().float(), w)


def test_mask_keeps_zeros() -> None:
    w, mask = torch.zeros(4, 3, 2, 2), torch.rand(4, 3, 2, 2) < 0.5
    packed = SparseWeight.from_dense(w, "unstructured", mask=mask)
    assert torch.equal(packed.mask(), mask)


def test_copy_takes_new_values() -> None:
    packed = SparseWeight.from_dense(sparse_filters(8, 6, (3, 3)), layout="kcsr128")
    new = sparse_filters(8, 6, (3, 3))
    packed.copy_(new)
    assert torch.equal(packed.to_dense(), new)
    assert packed.layout_name == "kcsr128"


# --- Models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_sparsify_a_cnn(last: bool) -> None:
    plain = small_cnn(last)
    model = gs.sparsify_(copy.deepcopy(plain), layout="kcsr128")
    assert [is_packed(model[i]) for i in (0, 2, 5, 6, 9)] == [True, True, True, False, True]
    report = gs.explain(model)
    assert "32 groups" in report["6"].reason
    assert report["2"].frozen
    x = images(2, 3, 16, 16, last=last)
    with torch.no_grad():
        assert_model(model(x), plain, x)
    gs.desparsify_(model)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.requires_grad


def test_what_stays_plain_and_why() -> None:
    def reason(module: nn.Conv2d, config: str | None = None) -> str:
        with torch.no_grad():
            module.weight[:, 1:] = 0
        gs.sparsify_(module, config, layout="kcsr128")
        assert not is_packed(module)
        return gs.explain(module)[""].reason

    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    assert "2 groups" in reason(nn.Conv2d(4, 4, 3, groups=2))
    assert "'reflect'" in reason(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert "float64" in reason(nn.Conv2d(4, 4, 3, dtype=torch.float64))
    assert "forward of its own" in reason(Own(4, 4, 3))
    dense = nn.Conv2d(4, 4, 3)
    gs.sparsify_(dense)
    assert "not sparse" in gs.explain(dense)[""].reason
    transposed = nn.ConvTranspose2d(4, 4, 3)
    assert gs.explain(transposed)[""].reason == "ConvTranspose2d is not a linear layer"


def test_shared_filters() -> None:
    def pair(stride: int) -> nn.Sequential:
        model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, stride=stride))
        with torch.no_grad():
            model[0].weight *= torch.rand_like(model[0].weight) < 0.2
        model[1].weight = model[0].weight
        return gs.sparsify_(model, layout="kcsr128")

    same = pair(1)
    assert same[0].weight is same[1].weight
    assert is_packed(same[0])
    other = pair(2)
    assert not is_packed(other[0])
    assert "another stride" in gs.explain(other)["0"].reason


@pytest.mark.parametrize("mode", [pytest.param("measure", marks=pytest.mark.timing), "model"])
def test_plan(mode: str) -> None:
    module = nn.Conv2d(64, 64, 3, padding=1)
    with torch.no_grad():
        module.weight *= torch.rand_like(module.weight) < 0.01
    plain = copy.deepcopy(module)
    gs.sparsify_(module, plan=mode)
    report = gs.explain(module)[""]
    assert is_packed(module), report.reason  # 99 % zeros: forty times less work
    assert len(report.plan) == 8
    assert all("conv2d" in bucket.kernel for bucket in report.plan)
    assert {bucket.kernel for bucket in report.plan} == set(module.weight.plan)
    assert "pixel" in report.reason
    x = torch.randn(2, 64, 9, 9)
    with torch.no_grad():
        assert_conv(module(x), x, plain.weight, plain.bias[:, None, None], numbers=(1, 1))


def test_plan_keeps_a_dense_copy_for_speed() -> None:
    w = sparse_filters(8, 6, (3, 3), keep=0.5)
    packed = ops.pack(w, None, "", "kcsr128", False, "w")
    packed = ops.with_plan(packed, json.dumps(["dense"] * 8))
    weight = SparseWeight.from_packed(packed, dense=w)
    for last in (False, True):
        x = images(2, 6, 9, 9, last=last)
        y = F.conv2d(x, weight, None, 1, (2, 1))
        assert_conv(y, x, w, numbers=(1, (2, 1)))
        want = torch.channels_last if last else torch.contiguous_format
        assert y.is_contiguous(memory_format=want)
    x.requires_grad_()
    uneven = conv2d(x, weight, padding=(0, 1, 2, 0), activation="relu")
    padded = F.pad(x.detach(), (2, 0, 0, 1))
    torch.testing.assert_close(uneven.detach(), F.conv2d(padded, w).relu())


def test_state_dict_and_files(tmp_path: Path) -> None:
    plain = small_cnn()
    model = gs.sparsify_(copy.deepcopy(plain), layout="kcsr128")
    x = torch.randn(2, 3, 16, 16)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = gs.sparsify_(copy.deepcopy(plain), layout="kcsr64")
    other.load_state_dict(torch.load(buffer))
    path = tmp_path / "model.safetensors"
    gs.save(model, path)
    fresh = small_cnn()
    gs.load_into(fresh, path, layout="kcsr256")
    assert [is_packed(fresh[i]) for i in (0, 2, 5, 6, 9)] == [True, True, True, False, True]
    flat = tmp_path / "dense.safetensors"
    gs.save(model, flat, packed=False)
    loaded = small_cnn()
    gs.load_into(loaded, flat)
    with torch.no_grad():
        for twin in (other, fresh, loaded):
            assert_model(twin(x), plain, x)
    for mine, theirs in zip(loaded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_file_metadata_names_the_kernel(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    module = nn.Conv2d(6, 8, (3, 5))
    with torch.no_grad():
        module.weight *= torch.rand_like(module.weight) < 0.2
    gs.save(gs.sparsify_(module, layout="format"), tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        info = json.loads(file.metadata()["gossamer.weight.weight"])
    assert info["shape"] == [8, 90]
    assert info["kernel"] == [3, 5]


# --- The environment ------------------------------------------------------------------------------

CHECK = """
import torch, torch.nn.functional as F, gossamer as gs
from gossamer.weight import SparseWeight
torch.manual_seed(3)
w = torch.randn(16, 8, 3, 3) * (torch.rand(16, 8, 3, 3) < 0.05)
x = torch.randn(2, 8, 12, 12)
y = F.conv2d(x, SparseWeight.from_dense(w, layout="kcsr128"), None, 1, 1)
assert (y - F.conv2d(x, w, None, 1, 1)).abs().max() < 1e-4
module = torch.nn.Conv2d(8, 16, 3)
with torch.no_grad(): module.weight.copy_(w)
print(gs.explain(gs.sparsify_(module))[""].kernel)
z = F.linear(x[0, 0], SparseWeight.from_dense(torch.eye(12), layout="kcsr128"))
assert torch.equal(z, x[0, 0])
"""


@pytest.mark.parametrize(
    ("name", "value", "kernel"),
    [
        ("GOSSAMER_MAX_ISA", "generic", ("generic", "dense")),
        ("GOSSAMER_KERNEL", "generic_conv2d_kcsr64_f32", ("generic_conv2d_kcsr64_f32",)),
        ("GOSSAMER_KERNEL", "dense", ("dense",)),
        ("GOSSAMER_KERNEL", "generic_spmm_kcsr128_f32", ("",)),
    ],
)
def test_environment(name: str, value: str, kernel: tuple[str, ...]) -> None:
    environment = {**os.environ, name: value, "GOSSAMER_CACHE": "off"}
    run = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(kernel), run.stdout


def test_unknown_kernel_in_the_environment() -> None:
    environment = {**os.environ, "GOSSAMER_KERNEL": "avx2_conv", "GOSSAMER_CACHE": "off"}
    run = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert "there is no such kernel" in run.stderr
