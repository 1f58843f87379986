# SPDX-License-Identifier: BSD-3-Clause
"""2:4 weights on a GPU: packing, moving, multiplying, beside the core and products in float64."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer._layout_argument import INPUTS_SHIFT, TOLD_SHIFT
from gossamer.weight import SparseWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


DTYPES = (torch.bfloat16, torch.float16)
TOLD_64 = 33 | 1 << TOLD_SHIFT | 64 << INPUTS_SHIFT
ops = torch.ops.gossamer


def make_24(out: int, inputs: int, dtype: torch.dtype, device: str = "cuda") -> Tensor:
    """A random weight that is 2:4 along its rows."""
    padded = -(-inputs // 4) * 4
    keep = torch.rand(out, padded // 4, 4, device=device).argsort(-1) < 2
    return torch.randn(out, inputs, device=device, dtype=dtype) * keep.reshape(out, padded)[
        :, :inputs
    ].to(dtype)


def assert_product(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> None:
    """|y - x·Wᵀ| within one rounding of the result and what float32 sums of `in` terms may lose."""
    exact = x.double() @ w.double().T
    magnitude = x.double().abs() @ w.double().abs().T
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    half_ulp = torch.finfo(y.dtype).eps / 2
    # Each of the in + 1 additions rounds (tensor cores truncate: twice that) relative to what has
    # been summed, at most the sum of magnitudes.
    sums = (x.shape[-1] + 2) * torch.finfo(torch.float32).eps * magnitude
    bound = half_ulp * (exact.abs() + sums) + sums + torch.finfo(y.dtype).tiny
    error = (y.double() - exact).abs()
    assert torch.isfinite(y).all()
    assert (error <= bound).all(), (error - bound).max().item()


def kernels(x: Tensor, out: int) -> Iterator[str]:
    """Every row of the kernel table that computes this product here."""
    rows = json.loads(ops.cuda_kernel_table(x, out))
    assert len(rows) > 10
    for row in rows:
        if not row["refuses"]:
            yield row["name"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(64, 64), (1, 1), (3, 5), (65, 70), (130, 66), (64, 63), (200, 1000)]
)
def test_the_gpu_packs_the_same_bytes_as_the_cpu(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    w = make_24(*shape, dtype)
    w[0, 0] = -0.0
    for layout in ("nm24_tiles", "format"):
        ours = ops.pack(w, None, "2:4", layout, False, "w")
        reference = ops.pack(w.cpu(), None, "2:4", layout, False, "w")
        assert torch.equal(ours.cpu(), reference)
        ops.validate(ours)
        assert torch.equal(ops.unpack(ours, shape, dtype), w + 0.0)
        assert torch.equal(ops.unpack_mask(ours, shape).cpu(), ops.unpack_mask(reference, shape))
    nm = ops.pack(w, None, "2:4", "nm", False, "w")
    tiles = ops.convert(nm, "nm24_tiles")
    assert torch.equal(ops.convert(tiles, "nm"), nm)
    assert torch.equal(tiles.cpu(), ops.convert(nm.cpu(), "nm24_tiles"))
    assert torch.equal(ops.convert(tiles, "nm24_pairs").cpu(), ops.convert(nm.cpu(), "nm24_pairs"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruning_by_magnitude_keeps_what_the_core_keeps(dtype: torch.dtype) -> None:
    w = torch.randn(67, 130, device="cuda", dtype=dtype)
    w[3, :8] = 1.0  # ties go to the lower column
    mask = ops.magnitude_mask(w, "2:4", "row")
    packed = ops.prune_pack_24(w)
    assert torch.equal(ops.unpack(packed, w.shape, dtype), torch.where(mask, w, 0) + 0.0)
    masked = ops.pack(w, mask, "2:4", "nm24_tiles", False, "w")
    assert torch.equal(masked, packed)


def test_a_kept_zero_stays_kept() -> None:
    w = torch.zeros(64, 64, device="cuda", dtype=torch.bfloat16)
    mask = torch.zeros(64, 64, device="cuda", dtype=torch.bool)
    mask[:, 2::4] = mask[:, 3::4] = True
    packed = ops.pack(w, mask, "2:4", "nm24_tiles", False, "w")
    assert torch.equal(ops.unpack_mask(packed, (64, 64)), mask)


def test_a_weight_that_breaks_the_pattern_is_refused_with_its_place() -> None:
    w = make_24(256, 512, torch.bfloat16)
    w[200, 8:12] = 1.0
    w[77, 100:103] = 1.0
    w[77, 103] = 0.0
    with pytest.raises(ValueError, match=r"weight 'blk' row 77, columns 100–103: more than 2"):
        ops.pack(w, None, "2:4", "format", False, "blk")


@pytest.mark.parametrize(
    ("out", "inputs"),
    [(1, 1), (64, 64), (65, 70), (127, 129), (511, 1023), (1024, 4096), (4160, 1032)],
)
def test_every_kernel_multiplies(out: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in DTYPES:
        w = make_24(out, inputs, dtype)
        packed = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
        bias = torch.randn(out, device="cuda", dtype=dtype)
        for tokens in (*range(1, 18), 63, 64, 65, 127, 128, 129, 300):
            x = torch.randn(tokens, inputs, device="cuda", dtype=dtype)
            for name in kernels(x, out):
                monkeypatch.setenv("GOSSAMER_KERNEL", name)
                y = ops.linear(x, packed, 33, out, None, bias)
                assert_product(y, x, w, bias)
            monkeypatch.delenv("GOSSAMER_KERNEL", raising=False)


@pytest.mark.parametrize("tokens", [3, 40, 200])
def test_epilogues(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = make_24(200, 136, torch.bfloat16)
    packed = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
    x = torch.randn(tokens, 136, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(200, device="cuda", dtype=torch.bfloat16)
    residual = torch.randn(tokens, 200, device="cuda", dtype=torch.bfloat16)
    plain = x.double() @ w.double().T
    exact = (plain + bias + residual).relu()
    magnitude = x.double().abs() @ w.double().abs().T + bias.abs() + residual.abs()
    eps = torch.finfo(torch.float32).eps
    bound = torch.finfo(torch.bfloat16).eps / 2 * exact + 140 * eps * magnitude
    for name in kernels(x, 200):
        monkeypatch.setenv("GOSSAMER_KERNEL", name)
        y = ops.linear(x, packed, 33, 200, None, bias, 1, residual)
        assert ((y.double() - exact).abs() <= bound).all(), name
        x_nan = x.clone()
        x_nan[0, 0] = float("nan")
        y = ops.linear(x_nan, packed, 33, 200, None, None, 1)
        hit = ops.unpack_mask(packed, (200, 136))[:, 0]
        assert torch.equal(y[0].isnan(), hit), name


def test_what_is_pruned_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(192, 256, device="cuda", dtype=torch.bfloat16)
    w.view(192, 64, 4)[..., 1::2] = 0
    packed = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
    for tokens in (5, 140):
        x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16)
        poisoned = x.clone()
        poisoned[:, 1::4], poisoned[:, 3::4] = float("nan"), float("inf")
        for name in kernels(x, 192):
            monkeypatch.setenv("GOSSAMER_KERNEL", name)
            clean = ops.linear(x, packed, 33, 192)
            assert torch.equal(ops.linear(poisoned, packed, 33, 192), clean), name


def test_strided_and_unaligned_inputs() -> None:
    w = make_24(256, 512, torch.bfloat16)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    for tokens in (1, 7, 128, 200):
        wide = torch.randn(tokens, 520, device="cuda", dtype=torch.bfloat16)
        flat = torch.randn(tokens * 513 + 1, device="cuda", dtype=torch.bfloat16)
        views = [
            wide[:, 1:513],
            wide[:, 2:514],
            wide[:, 4:516],
            wide[:, 8:],
            flat[1:].view(tokens, 513)[:, :512],
            wide[:1, :512].expand(tokens, 512),
            torch.randn(512, tokens, device="cuda", dtype=torch.bfloat16).T,
        ]
        for x in views:
            assert_product(F.linear(x, weight), x, w)


def test_the_same_result_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    w = make_24(2048, 4096, torch.bfloat16)
    packed = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
    for tokens in (8, 100, 260):
        x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
        for name in kernels(x, 2048):
            monkeypatch.setenv("GOSSAMER_KERNEL", name)
            first = ops.linear(x, packed, 33, 2048)
            for _ in range(20):
                assert torch.equal(ops.linear(x, packed, 33, 2048), first), name


def test_a_weight_moves_between_cpu_and_gpu() -> None:
    w = make_24(96, 200, torch.bfloat16, "cpu")
    weight = SparseWeight.from_dense(w, "2:4")
    layer = torch.nn.Linear(200, 96, dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.to("cuda")
    assert layer.weight.device.type == "cuda"
    assert layer.weight.layout_name == "nm24_tiles"
    x = torch.randn(2, 5, 200, device="cuda", dtype=torch.bfloat16)
    y = layer(x)
    assert y.shape == (2, 5, 96)
    assert_product(y.reshape(10, 96), x.reshape(10, 200), w.cuda(), layer.bias)
    assert torch.equal(layer.weight.to_dense().cpu(), w)
    back = copy.deepcopy(layer).cpu()
    assert back.weight.layout_name == "nm"
    assert torch.equal(back.weight.to_dense(), w)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert torch.equal(state["weight"].to_dense(), w.cuda())
    assert state["weight"].layout_name == "nm24_tiles"


def test_cuda_graph_and_streams() -> None:
    w = make_24(512, 1024, torch.bfloat16)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    x = torch.randn(16, 1024, device="cuda", dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    F.linear(x, weight)
    with torch.cuda.graph(graph):
        hidden = F.linear(x, weight)
        y = F.linear(hidden.repeat(1, 2), weight)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_product(hidden, x, w)
    assert_product(y, hidden.repeat(1, 2), w)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for i in range(40):
        with torch.cuda.stream(streams[i % 4]):
            results.append(F.linear(x, weight))
    torch.cuda.synchronize()
    assert all(torch.equal(result, hidden) for result in results)


def test_gradients_of_inputs_and_bias() -> None:
    w = make_24(96, 128, torch.bfloat16)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    x = torch.randn(20, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(96, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    seed = torch.randn(20, 96, device="cuda", dtype=torch.bfloat16)
    F.linear(x, weight, bias).backward(seed)
    assert x.grad is not None
    assert bias.grad is not None
    assert_product(x.grad, seed, w.T.contiguous())
    torch.testing.assert_close(bias.grad, seed.sum(0))


def test_compiles_without_a_break() -> None:
    w = make_24(128, 256, torch.bfloat16)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    layer = torch.nn.Linear(256, 128, bias=False, device="cuda", dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    x = torch.randn(12, 256, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        compiled = torch.compile(layer, fullgraph=True)
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, p: ops.linear(x.cpu(), p, 33, 64), "x is on the CPU"),
        (lambda x, p: ops.linear(x.float(), p, 33, 64), "float16 and bfloat16 are multiplied"),
        (lambda x, p: ops.linear(x[:, :60], p, TOLD_64, 64), r"x must be \[..., 64\]"),
        (lambda x, p: ops.linear(x.repeat(1, 2), p, 33, 64), "packed has .* bytes"),
        (lambda x, p: ops.linear(x, p, 33, 65 + 64), "packed has .* bytes"),
        (lambda x, p: ops.linear(x, p, 1, 64), "layout 1 is not computed on a GPU"),
        (lambda x, p: ops.linear(x, p, 33, 64, None, x[0, :63]), "bias is"),
        (lambda x, p: ops.linear(x, p, 33, 64, None, x[0].cpu()), "bias is on the CPU"),
        (lambda x, p: ops.pack(x.float(), None, "2:4", "format", False, "w"), "float32"),
        (lambda x, p: ops.pack(x, None, "1:4", "format", False, "w"), "pattern 1:4"),
        (lambda x, p: ops.unpack(p, (64, 65), torch.bfloat16), "does not match"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    w = make_24(64, 64, torch.bfloat16)
    packed = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
    x = torch.randn(4, 64, device="cuda", dtype=torch.bfloat16)
    with pytest.raises((ValueError, NotImplementedError, RuntimeError), match=message):
        call(x, packed)  # type: ignore[operator]


def test_other_weights_are_not_moved() -> None:
    for values, pattern in (
        (torch.randn(8, 8).bfloat16() * (torch.rand(8, 8) < 0.3), "unstructured"),
        (make_24(8, 8, torch.float32, "cpu"), "2:4"),
    ):
        weight = SparseWeight.from_dense(values, pattern)
        with pytest.raises(NotImplementedError, match="cannot be moved to cuda"):
            weight.to("cuda")


def test_inputs_of_another_width_are_refused() -> None:
    weight = SparseWeight.from_dense(make_24(64, 64, torch.bfloat16), "2:4", layout="nm24_tiles")
    x = torch.randn(4, 60, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"x must be \[..., 64\]"):
        F.linear(x, weight)
    with pytest.raises(ValueError, match=r"x must be \[..., 64\]"):
        torch.matmul(x, weight)
