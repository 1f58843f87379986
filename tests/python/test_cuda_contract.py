# SPDX-License-Identifier: BSD-3-Clause
"""What a GPU's operators refuse, and what holds while weights are overwritten and graphs replay."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer import _layout_argument
from gossamer._quantization import pack_quantized
from gossamer.weight import SparseWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

OUT, IN = 192, 320
HALVES = (torch.bfloat16, torch.float16)
KINDS = ("bfloat16", "float16", "int8", "float8")
VALUES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
ops = torch.ops.gossamer


def make_24(dtype: torch.dtype, out: int = OUT, inputs: int = IN) -> Tensor:
    keep = torch.rand(out, inputs // 4, 4, device="cuda").argsort(-1) < 2
    return (torch.randn(out, inputs, device="cuda") * keep.flatten(1)).to(dtype)


def packed_weight(kind: str, out: int = OUT, inputs: int = IN) -> SparseWeight:
    if kind == "float8" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("float8 needs compute capability 9.x")
    w = make_24(torch.float16 if kind == "float16" else torch.bfloat16, out, inputs)
    if kind not in VALUES:
        return SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    packed, scale = pack_quantized(w, "2:4", dtype=VALUES[kind], layout="nm24_tiles")
    return SparseWeight.from_quantized(packed, scale, w.dtype)


def inputs_of(weight: SparseWeight, tokens: int) -> Tensor:
    return torch.randn(tokens, weight.in_features, device="cuda", dtype=weight.dtype)


def running_dense(weight: SparseWeight, dense: Tensor) -> SparseWeight:
    """With a plan that runs its dense copy at every token count."""
    everywhere = json.dumps(["dense"] * 8)
    return weight._replace(ops.with_plan(weight.packed, everywhere), dense)


# --- dtypes ---------------------------------------------------------------------------------------

PRODUCTS: list[Callable[[Tensor, SparseWeight], Tensor]] = [
    lambda x, w: F.linear(x, w),
    lambda x, w: F.linear(x, w, torch.zeros(OUT, device="cuda", dtype=x.dtype)),
    lambda x, w: F.linear(x.requires_grad_(), w),
    lambda x, w: torch.compile(F.linear, backend="eager")(x, w),
    lambda x, w: x @ w.mT,
    lambda x, w: torch.addmm(torch.zeros(OUT, device="cuda", dtype=x.dtype), x, w.t()),
    lambda x, w: gs.linear(x, w, activation="gelu"),
    lambda x, w: gs.linear(x, w, residual=torch.zeros(len(x), OUT, device="cuda", dtype=x.dtype)),
    lambda x, w: gs.linear(x, w, output_dtype=torch.float32),
    lambda x, w: torch.zeros(len(x), OUT, device="cuda", dtype=x.dtype) @ w,
    lambda x, w: ops.linear(x, w.packed, w._layout_argument, OUT),
    lambda x, w: ops.linear_plain(x, w.packed, w._layout_argument, OUT, None),
    lambda x, w: ops.linear_dx(
        torch.zeros(len(x), OUT, device="cuda", dtype=x.dtype), w.packed, w._layout_argument, IN
    ),
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("product", range(len(PRODUCTS)))
@pytest.mark.parametrize("tokens", [3, 200])
def test_the_other_half_precision_is_refused(product: int, dtype: torch.dtype, tokens: int) -> None:
    weight = packed_weight(str(dtype).removeprefix("torch."))
    x = inputs_of(weight, tokens)
    assert PRODUCTS[product](x, weight).isfinite().all()
    other = torch.float16 if dtype is torch.bfloat16 else torch.bfloat16
    names = [str(d).removeprefix("torch.") for d in (other, dtype)]
    message = rf"(x|grad) is {names[0]}, the packed weight is {names[1]}: both must be"
    with pytest.raises((ValueError, RuntimeError), match=message):
        PRODUCTS[product](x.detach().to(other), weight)


def test_the_other_eight_bits_are_refused() -> None:
    for kind, other in (("int8", torch.float8_e4m3fn), ("float8", torch.int8)):
        weight = packed_weight(kind)
        layout = weight._layout_argument
        x = torch.zeros(4, IN, device="cuda").to(VALUES[kind])
        operands = (weight.scale, None, 0, None, torch.bfloat16, False)
        assert not ops.linear_quantized(x, None, weight.packed, layout, OUT, *operands).any()
        wrong = x.to(torch.float32).to(other)
        with pytest.raises(ValueError, match=r"x is \S+, the packed weight is .* quantize x as"):
            ops.linear_quantized(wrong, None, weight.packed, layout, OUT, *operands)


def test_a_dtype_that_nobody_told_is_read_where_that_is_possible() -> None:
    weight = packed_weight("bfloat16")
    grad = torch.zeros(4, OUT, device="cuda", dtype=torch.float16)
    with pytest.raises(ValueError, match="bfloat16"):
        ops.linear_dx(grad, weight.packed, 33, IN)
    with pytest.raises(ValueError, match="bfloat16"):
        ops.unpack_tiles(weight.packed, 33, [OUT, IN], torch.float16)
    with pytest.raises(ValueError, match="holds bfloat16"):
        ops.unpack_tiles(weight.packed, weight._layout_argument, [OUT, IN], torch.float16)
    with pytest.raises(ValueError, match="does not match"):
        ops.unpack_tiles(weight.packed, weight._layout_argument, [OUT, IN - 4], torch.bfloat16)
    with pytest.raises(ValueError, match="inputs is 316"):
        ops.linear_dx(grad.bfloat16(), weight.packed, weight._layout_argument, IN - 4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda dense: dense[:-1],
        lambda dense: dense[:, :-4],
        lambda dense: dense[None].repeat(2, 1, 1),
        lambda dense: dense[0],
        lambda dense: dense.half(),
        lambda dense: dense.cpu(),
    ],
)
def test_a_dense_copy_of_something_else_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    weight = packed_weight("bfloat16")
    dense = weight.to_dense()
    x = inputs_of(weight, 8)
    grad = torch.randn(8, OUT, device="cuda", dtype=x.dtype)
    everywhere = _layout_argument.plan_bits([_layout_argument.DENSE] * _layout_argument.PARTS)
    layout = weight._layout_argument | everywhere
    rest = (None, None, 0, None)
    assert torch.equal(ops.linear(x, weight.packed, layout, OUT, *rest, dense), F.linear(x, dense))
    message = "dense, the weight's dense copy, is|dense is on the CPU"
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.linear(x, weight.packed, layout, OUT, *rest, wrong(dense))
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.linear_dx(grad, weight.packed, layout, IN, wrong(dense))


def test_packing_speaks_of_the_weight() -> None:
    w = make_24(torch.bfloat16)
    mask = torch.ones_like(w, dtype=torch.bool).cpu()
    message = r"mask is on the CPU, the weight on cuda:\d: both must be on one device"
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.pack(w, mask, "2:4", "nm24_tiles", False, "w")


# --- Bytes that are not aligned -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("layout", ["nm24_tiles", "nm"])
@pytest.mark.parametrize("offset", [1, 8])
def test_bytes_that_begin_anywhere_are_read(offset: int, layout: str, kind: torch.dtype) -> None:
    w = make_24(kind) if kind is torch.bfloat16 else (make_24(torch.float32) * 9).to(kind)
    packed = ops.pack(w, None, "2:4", layout, False, "w")
    room = torch.zeros(packed.numel() + 16, device="cuda", dtype=torch.uint8)
    view = room[offset : offset + packed.numel()]
    view.copy_(packed)
    assert view.data_ptr() % 16 == offset
    other = "nm" if layout == "nm24_tiles" else "nm24_tiles"
    assert torch.equal(ops.unpack(view, w.shape, kind), w)
    assert torch.equal(ops.unpack_mask(view, w.shape), ops.unpack_mask(packed, w.shape))
    assert torch.equal(ops.convert(view, other), ops.convert(packed, other))
    assert torch.equal(ops.convert(view, layout), packed)
    values, mask = torch.empty_like(w), torch.empty_like(w, dtype=torch.bool)
    ops.unpack_(view, values, mask)
    assert torch.equal(values, w)
    assert torch.equal(mask, ops.unpack_mask(packed, w.shape))
    with pytest.raises(ValueError, match="does not begin at a multiple of 16 bytes"):
        ops.pack_(view, w)
    assert torch.equal(view, packed)
    if layout == "nm24_tiles" and kind is torch.bfloat16:
        x = torch.randn(5, IN, device="cuda", dtype=kind)
        grad = torch.randn(5, OUT, device="cuda", dtype=kind)
        assert torch.equal(ops.linear(x, view, 33, OUT), ops.linear(x, packed, 33, OUT))
        assert torch.equal(ops.linear_dx(grad, view, 33, IN), ops.linear_dx(grad, packed, 33, IN))
    torch.cuda.synchronize()


# --- Overwriting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("layout", ["nm24_tiles", "nm"])
def test_a_refused_pack_leaves_the_weight_what_it_was(layout: str, stacked: bool) -> None:
    w = make_24(torch.bfloat16)
    w = torch.stack([w, w.flip(0)]) if stacked else w
    packed = ops.pack(w, None, "2:4", layout, False, "w")
    before = packed.clone()
    wrong = torch.full_like(w, 3.0)
    with pytest.raises(ValueError, match="more than 2 non-zeros"):
        ops.pack_(packed, wrong)
    assert torch.equal(packed, before)
    with pytest.raises(ValueError, match="more than 2 non-zeros"):
        ops.pack_(packed, w, torch.ones_like(w, dtype=torch.bool))
    assert torch.equal(packed, before)
    ops.pack_(packed, w.flip(-2))
    assert torch.equal(ops.unpack(packed, w.shape, w.dtype), w.flip(-2))


@torch.no_grad()
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_graph_sees_what_a_weight_becomes(kind: str, dense: bool) -> None:
    sources = [packed_weight(kind) for _ in range(3)]
    weight = copy.deepcopy(sources[0])
    if dense:
        weight = running_dense(weight, weight.to_dense())
    layer = nn.Linear(IN, OUT, bias=False, device="cuda", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    x = inputs_of(weight, 24)
    layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    for source in (sources[1], sources[2].to_dense()):
        if isinstance(source, SparseWeight):
            layer.load_state_dict({"weight": source})
        else:
            layer.weight.copy_(source)
        y.zero_()
        graph.replay()
        assert torch.equal(y, layer(x))
        if kind not in VALUES:
            held: Any = layer.weight
            values = source.to_dense() if isinstance(source, SparseWeight) else source
            assert torch.equal(held.to_dense(), values)
        # What was freed is taken by others, and is not what the graph reads.
        trash = [torch.full((4096,), 255, device="cuda", dtype=torch.uint8) for _ in range(64)]
        y.zero_()
        graph.replay()
        assert torch.equal(y, layer(x))
        del trash


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 8, 200])
@pytest.mark.parametrize("writer", ["copy_", "pack_", "memcpy", "kernel"])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_product_right_behind_a_write_sees_it(kind: str, writer: str, tokens: int) -> None:
    """Products ask for their weights before the kernel in front of them has ended."""
    if writer == "pack_" and kind in VALUES:
        pytest.skip("pack_ takes values of the weight's own dtype; copy_ quantizes")
    out, inputs = 4096, 2048
    sources = [packed_weight(kind, out, inputs) for _ in range(2)]
    weight = copy.deepcopy(sources[0])
    scales = [source.scale for source in sources]
    dense = [source.to_dense() for source in sources]
    x = inputs_of(weight, tokens)
    expected = [F.linear(x, source) for source in sources]
    results = []
    for i in range(40):
        which = i % 2
        if writer == "copy_":
            weight.copy_(sources[which])
        elif writer == "pack_":
            ops.pack_(weight.packed, dense[which])
        else:
            if weight.scale is not None:
                weight.scale.copy_(scales[which])  # type: ignore[arg-type]
            if writer == "memcpy":  # no kernel, and nothing behind it
                weight.packed.copy_(sources[which].packed)
            else:
                torch.add(sources[which].packed, 0, out=weight.packed)
                ops.publish_(weight.packed)
        results.append(F.linear(x, weight))
    torch.cuda.synchronize()
    for i, y in enumerate(results):
        assert torch.equal(y, expected[i % 2]), i


# --- Gradients and graphs -------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_x_is_captured(kind: str, activation: str | None) -> None:
    weight = packed_weight(kind)
    x = inputs_of(weight, 24).requires_grad_()
    seed = torch.randn(24, OUT, device="cuda", dtype=weight.dtype)

    def gradient() -> Tensor:
        y = gs.linear(x, weight, activation=activation)
        return torch.autograd.grad(y, x, seed)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradient()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        seed.copy_(torch.randn_like(seed))
    graph.replay()
    assert captured.any()
    assert torch.equal(captured, gradient())
    if activation is None and kind not in VALUES:
        torch.testing.assert_close(captured, seed @ weight.to_dense())


def test_a_forced_row_runs_where_the_plan_says_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = packed_weight("bfloat16")
    x = inputs_of(weight, 8)
    y = F.linear(x, weight)
    marked = running_dense(weight, torch.zeros(OUT, IN, device="cuda", dtype=torch.bfloat16))
    assert _layout_argument.runs_dense(marked._layout_argument, 8)
    arguments = (x, *marked._linear_arguments, None, 0, None, marked.dense)
    assert not ops.linear(*arguments).any()
    assert not F.linear(x, marked).any()
    rows = json.loads(ops.cuda_kernel_table(x, OUT))
    name = next(row["name"] for row in rows if not row["refuses"])
    monkeypatch.setenv("GOSSAMER_KERNEL", name)
    assert ops.linear(*arguments).any()
    again = marked._replace(marked.packed, marked.dense)  # read where a weight is made
    torch.testing.assert_close(F.linear(x, again), y)
    monkeypatch.setenv("GOSSAMER_KERNEL", "avx2_linear_bitmask")  # a CPU's, as it was
    assert not ops.linear(*arguments).any()
