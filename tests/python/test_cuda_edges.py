# SPDX-License-Identifier: BSD-3-Clause
"""Shapes and calls at the edges of what a GPU's operators take, and what torch asks of each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

import gossamer as gs
from gossamer._quantization import pack_quantized
from gossamer.weight import SparseWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

OUT, IN = 96, 136
KINDS = ("bfloat16", "int8", "float8")
VALUES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
ops = torch.ops.gossamer


def make_24(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    *rows, inputs = shape
    keep = torch.rand(*rows, -(-inputs // 4), 4, device="cuda").argsort(-1) < 2
    w = torch.randn(shape, device="cuda") * keep.flatten(-2)[..., :inputs]
    return w.to(dtype)


def packed_weight(kind: str, out: int = OUT, inputs: int = IN) -> SparseWeight:
    if kind == "float8" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("float8 needs compute capability 9.x")
    w = make_24(out, inputs)
    if kind not in VALUES:
        return SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    packed, scale = pack_quantized(w, "2:4", dtype=VALUES[kind], layout="nm24_tiles")
    return SparseWeight.from_quantized(packed, scale, w.dtype)


def tokens_of(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def assert_near(y: Tensor, exact: Tensor, magnitude: Tensor, inputs: int) -> None:
    """Within one rounding of the result and what float32 sums of `inputs` terms may lose."""
    sums = (inputs + 3) * torch.finfo(torch.float32).eps * magnitude
    half_ulp = torch.finfo(y.dtype).eps / 2
    bound = half_ulp * (exact.abs() + sums) + sums + torch.finfo(y.dtype).tiny
    assert y.shape == exact.shape
    assert ((y.double() - exact).abs() <= bound).all()


# --- Shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5)])
def test_no_tokens(shape: tuple[int, ...], kind: str) -> None:
    weight = packed_weight(kind)
    x = tokens_of(*shape, IN).requires_grad_()
    bias = tokens_of(OUT).requires_grad_()
    y = gs.linear(x, weight, bias, activation="relu")
    assert y.shape == (*shape, OUT)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert bias.grad is not None
    assert not bias.grad.any()


@pytest.mark.parametrize("tokens", [1, 9, 200])
def test_no_inputs_give_the_bias(tokens: int) -> None:
    weight = SparseWeight.from_dense(make_24(OUT, 0), "2:4", layout="nm24_tiles")
    bias = tokens_of(OUT)
    y = F.linear(tokens_of(tokens, 0), weight, bias)
    assert torch.equal(y, bias.expand(tokens, OUT))
    assert not F.linear(tokens_of(tokens, 0), weight).any()


def test_no_outputs() -> None:
    weight = SparseWeight.from_dense(make_24(0, IN), "2:4", layout="nm24_tiles")
    x = tokens_of(7, IN).requires_grad_()
    y = F.linear(x, weight)
    assert y.shape == (7, 0)
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_and_four_dimensions(kind: str) -> None:
    weight = packed_weight(kind)
    flat = tokens_of(30, IN)
    bias = tokens_of(OUT)
    y = F.linear(flat, weight, bias)
    assert torch.equal(F.linear(flat.view(2, 5, 3, IN), weight, bias), y.view(2, 5, 3, OUT))
    assert torch.equal(F.linear(flat[:1], weight, bias)[0], F.linear(flat[0], weight, bias))
    # Leading dimensions that one stride walks through, and some that none does.
    wide = tokens_of(2, 5, 3, 2 * IN)
    for x in (wide[..., :IN], wide[:, 1:4, :, IN:], wide[..., ::2], wide.transpose(0, 2)[..., :IN]):
        assert torch.equal(F.linear(x, weight, bias), F.linear(x.contiguous(), weight, bias))


@pytest.mark.parametrize("tokens", [0, 1, 7, 130])
def test_a_stack_of_experts(tokens: int) -> None:
    w = make_24(3, OUT, IN)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    bias = tokens_of(3, OUT)
    for x in (tokens_of(3, tokens, IN), tokens_of(tokens, 3, IN + 5)[..., 5:].transpose(0, 1)):
        x = x.detach().requires_grad_()
        y = gs.linear(x, weight, bias)
        exact = torch.einsum("eti,eoi->eto", x.double(), w.double()) + bias.double()[:, None]
        magnitude = torch.einsum("eti,eoi->eto", x.double().abs(), w.double().abs())
        assert_near(y, exact, magnitude + bias.double().abs()[:, None], IN)
        seed = torch.randn_like(y)
        (found,) = torch.autograd.grad(y, x, seed)
        back = torch.einsum("eto,eoi->eti", seed.double(), w.double())
        reach = torch.einsum("eto,eoi->eti", seed.double().abs(), w.double().abs())
        assert_near(found, back, reach, OUT)
    with pytest.raises(ValueError, match=r"x must be .*136\]"):
        gs.linear(tokens_of(3, 2, IN - 4), weight)


@pytest.mark.parametrize("tokens", [1, 8, 64, 200])
def test_float8_nan_at_pruned_positions_is_not_read(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("float8 needs compute capability 9.x")
    w = torch.randn(192, 256, device="cuda")
    # Two of each four, none so small that it is rounded to zero: an index of a value that is not
    # there points at a pruned position too.
    w = torch.where(w.abs() < 2**-6, 2**-6, w)
    w.view(192, 64, 4)[..., ::2] = 0
    packed = ops.pack(w.to(torch.float8_e4m3fn), None, "2:4", "nm24_tiles", False, "w")
    x = torch.randn(tokens, 256, device="cuda").to(torch.float8_e4m3fn)
    poisoned = x.clone()
    poisoned.view(torch.uint8)[:, ::4] = 0x7F
    poisoned.view(torch.uint8)[:, 2::4] = 0xFF
    assert poisoned.float().isnan().sum() == tokens * 128
    rows = [row for row in json.loads(ops.cuda_kernel_table(x, 192)) if not row["refuses"]]
    assert rows
    rest = (packed, 33, 192, None, None, 0, None, torch.bfloat16, False)
    for row in rows:
        monkeypatch.setenv("GOSSAMER_KERNEL", row["name"])
        clean = ops.linear_quantized(x, None, *rest)
        assert clean.isfinite().all()
        assert torch.equal(ops.linear_quantized(poisoned, None, *rest), clean), row["name"]


@pytest.mark.parametrize("kind", ["int8", "float8"])
@pytest.mark.parametrize("tokens", [4, 200])
def test_an_input_that_is_not_finite_spoils_its_token_alone(kind: str, tokens: int) -> None:
    """Each token has a scale of its own; docs/quantization.md says what a bad one gives."""
    weight = packed_weight(kind)
    x = tokens_of(tokens, IN)
    clean = F.linear(x, weight)
    for what in (float("nan"), float("inf")):
        spoilt = x.clone()
        spoilt[1, 5] = what
        y = F.linear(spoilt, weight)
        others = torch.arange(tokens, device="cuda") != 1
        assert torch.equal(y[others], clean[others])
        assert y[1].isnan().all()


# --- Graphs ---------------------------------------------------------------------------------------

FIRST_CALL = """
import torch
from gossamer.weight import SparseWeight
torch.manual_seed(0)
w = torch.randn(96, 136).to(torch.{dtype})
w.view(96, 34, 4)[..., ::2] = 0
weight = SparseWeight.from_dense(w, "2:4").to("cuda")
x = torch.randn({tokens}, 136, device="cuda", dtype=torch.{dtype})
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = torch.nn.functional.linear(x, weight)
graph.replay()
assert torch.equal(y, torch.nn.functional.linear(x, weight))
assert y.any()
print("captured")
"""


@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_first_product_of_a_process_is_captured(tokens: int, dtype: str) -> None:
    script = FIRST_CALL.format(tokens=tokens, dtype=dtype)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.strip() == "captured", run.stderr[-2000:]


@pytest.mark.parametrize("tokens", [8, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_packing_and_multiplying_are_captured_in_one_graph(kind: str, tokens: int) -> None:
    dense = make_24(512, 1024)
    x = tokens_of(tokens, 1024)
    layout = packed_weight(kind, 512, 1024)._layout_argument

    def call() -> Tensor:
        if kind in VALUES:
            packed, scale, _ = ops.quantize_pack_24(dense, None, VALUES[kind])
            return ops.linear(x, packed, layout, 512, scale)
        packed, _ = ops.pack_24(dense)
        return ops.linear(x, packed, layout, 512)

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    for _ in range(5):
        dense.copy_(make_24(512, 1024))
        graph.replay()
        assert y.any()
        assert torch.equal(y, call())


# --- What torch asks of an operator ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operators_are_what_torch_asks_of_them(dtype: torch.dtype) -> None:
    w = make_24(64, 128, dtype=dtype)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    packed, layout = weight.packed, weight._layout_argument
    x = torch.randn(6, 128, device="cuda", dtype=dtype)
    bias = torch.randn(64, device="cuda", dtype=dtype)
    opcheck(ops.linear_plain.default, (x, packed, layout, 64, bias))
    grad = torch.randn(6, 64, device="cuda", dtype=dtype)
    opcheck(ops.linear_dx.default, (grad.requires_grad_(), packed, layout, 128))
    opcheck(ops.linear_dx.default, (grad, packed, layout, 128, w))
    opcheck(ops.unpack.default, (packed, [64, 128], dtype))
    opcheck(ops.unpack_mask.default, (packed, [64, 128]))
    opcheck(ops.unpack_tiles.default, (packed, layout, [64, 128], dtype))
    opcheck(ops.convert.default, (packed, "nm"))
    opcheck(ops.pack_.default, (packed.clone(), w))
    opcheck(ops.publish_.default, (packed.clone(),))
    opcheck(ops.unpack_.default, (packed, w.clone(), w != 0))
