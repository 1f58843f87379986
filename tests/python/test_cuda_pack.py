# SPDX-License-Identifier: BSD-3-Clause
"""Packing on a GPU: the bytes of the CPU's packing, eight and sixteen bits, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

import gossamer as gs
from gossamer import _ops_cuda
from gossamer._quantization import pack_quantized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ops = torch.ops.gossamer
WIDE = (torch.float32, torch.bfloat16, torch.float16)
NARROW = (torch.int8, torch.float8_e4m3fn)
PACKED = (torch.bfloat16, torch.float16, *NARROW)
LAYOUTS = ("nm24_tiles", "nm")
SHAPES = [(1, 1), (3, 5), (64, 128), (65, 70), (130, 66), (17, 96), (200, 1000), (4, 8191)]


def kept_24(out: int, inputs: int) -> Tensor:
    """A random 2:4 mask."""
    groups = -(-inputs // 4)
    keep = torch.rand(out, groups, 4, device="cuda").argsort(-1) < 2
    return keep.reshape(out, 4 * groups)[:, :inputs]


def make_24(out: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """A random 2:4 weight with negative zeros among the dropped and rows that are nearly empty."""
    w = torch.randn(out, inputs, device="cuda") * (50 if dtype is torch.int8 else 1)
    w = torch.where(kept_24(out, inputs), w, 0.0 if dtype is torch.int8 else -0.0)
    if out > 3:
        w[1] = 0
        w[2, 1:] = 0
    return w.to(dtype)


def bits(t: Tensor) -> Tensor:
    """Comparable: float8 has no equality, and NaN none at all."""
    return t.contiguous().view(torch.uint8).cpu()


def unaligned(t: Tensor) -> Tensor:
    """The same values; rows begin anywhere."""
    room = torch.zeros(t.shape[0], t.shape[1] + 3, device="cuda", dtype=t.dtype)
    view = room[:, 1 : 1 + t.shape[1]]
    view.copy_(t)
    return view


# --- The CPU's bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_24_weight_is_packed_to_the_bytes_of_the_cpu(
    shape: tuple[int, int], dtype: torch.dtype, layout: str
) -> None:
    w = make_24(*shape, dtype)
    reference = ops.pack(w.cpu(), None, "2:4", layout, False, "w")
    for values in (w, unaligned(w), w.t().contiguous().t()):
        packed = ops.pack(values, None, "2:4", layout, False, "w")
        assert torch.equal(packed.cpu(), reference)
        again, verdict = ops.pack_24(values, layout=layout)
        assert torch.equal(again, packed)
        assert verdict.tolist() == [[-1, -1]]
        assert ops.verify_24(values).tolist() == [[-1, -1]]
    dense = ops.unpack(reference, shape, dtype)
    mask = ops.unpack_mask(reference, shape)
    assert torch.equal(bits(ops.unpack(packed, shape, dtype)), bits(dense))
    assert torch.equal(ops.unpack_mask(packed, shape).cpu(), mask)
    for other in LAYOUTS:
        converted = ops.convert(packed, other)
        assert torch.equal(converted.cpu(), ops.convert(reference, other))
        assert torch.equal(ops.convert(converted, layout), packed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_keeps_zeros_and_drops_what_it_does_not_name(
    shape: tuple[int, int], dtype: torch.dtype, layout: str
) -> None:
    w = torch.randn(*shape, device="cuda") * 30
    mask = kept_24(*shape)
    w = torch.where(torch.rand(shape, device="cuda") < 0.2, 0, w).to(dtype)
    reference = ops.pack(w.cpu(), mask.cpu(), "2:4", layout, False, "w")
    for values, kept in ((w, mask), (unaligned(w), unaligned(mask))):
        packed = ops.pack(values, kept, "2:4", layout, False, "w")
        assert torch.equal(packed.cpu(), reference)
    room, mask_room = torch.empty_like(w), torch.empty_like(mask)
    ops.unpack_(packed, room, mask_room)
    assert torch.equal(bits(room), bits(ops.unpack(reference, shape, dtype)))
    assert torch.equal(mask_room.cpu(), ops.unpack_mask(reference, shape))
    ops.unpack_(packed, unaligned(room), unaligned(mask_room))


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_keeps_the_two_largest_and_ties_go_to_the_lower_column(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    w = (torch.randn(*shape, device="cuda") * 30).to(dtype)
    w[0] = torch.full_like(w[0].float(), -128.0).to(dtype)
    mask = ops.magnitude_mask(w.cpu().float(), "2:4", "row")
    reference = ops.pack(w.cpu(), mask, "2:4", "nm24_tiles", False, "w")
    assert torch.equal(ops.prune_pack_24(w).cpu(), reference)
    packed, verdict = ops.pack_24(w, layout="nm", prune=True)
    assert torch.equal(packed.cpu(), ops.convert(reference, "nm"))
    assert verdict.tolist() == [[-1, -1]]


@pytest.mark.parametrize("to", NARROW)
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("shape", [*SHAPES, (5, 8192), (18, 8193), (3, 20000)])
def test_a_weight_is_quantized_and_packed_to_the_bytes_of_the_cpu(
    shape: tuple[int, int], dtype: torch.dtype, to: torch.dtype
) -> None:
    w = make_24(*shape, dtype)
    if shape[0] > 4:
        w[3] *= 2.0**-20  # rounds to zeros, to negative ones too, that stay kept
        w[3, 1:4] = 0
        w[3, 0] = 1.0
        w[4] = (w[4] * torch.finfo(dtype).tiny / 64).to(dtype)  # a scale without a reciprocal
    for layout in LAYOUTS:
        reference, scale = pack_quantized(w.cpu(), "2:4", dtype=to, layout=layout)
        for values in (w, unaligned(w)):
            packed, scales, verdict = ops.quantize_pack_24(values, None, to, layout)
            assert verdict.tolist() == [[-1, -1]]
            assert torch.equal(scales.cpu(), scale)
            assert torch.equal(packed.cpu(), reference)
        through, scales = pack_quantized(w, "2:4", dtype=to, layout=layout)
        assert torch.equal(through.cpu(), reference)
        assert torch.equal(scales.cpu(), scale)


@pytest.mark.parametrize("to", NARROW)
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("shape", [(1, 1), (65, 70), (17, 96), (20, 9000)])
def test_a_weight_is_pruned_quantized_and_packed_at_once(
    shape: tuple[int, int], dtype: torch.dtype, to: torch.dtype
) -> None:
    w = torch.randn(*shape, device="cuda").to(dtype)
    mask = ops.magnitude_mask(w.cpu(), "2:4", "row")
    reference, scale = pack_quantized(w.cpu(), "2:4", mask=mask, dtype=to, layout="nm24_tiles")
    packed, scales, verdict = ops.quantize_pack_24(w, None, to, prune=True)
    assert verdict.tolist() == [[-1, -1]]
    assert torch.equal(scales.cpu(), scale)
    assert torch.equal(packed.cpu(), reference)
    masked, scales, _ = ops.quantize_pack_24(w, mask.cuda(), to)
    assert torch.equal(masked, packed)
    assert torch.equal(scales.cpu(), scale)


def test_stacks_are_packed_matrix_by_matrix() -> None:
    w = torch.stack([make_24(65, 70, torch.bfloat16) for _ in range(3)])
    reference = ops.pack(w.cpu(), None, "2:4", "nm24_tiles", False, "w")
    packed, verdict = ops.pack_24(w)
    assert torch.equal(packed.cpu(), reference)
    assert verdict.tolist() == [[-1, -1]] * 3
    w[1, 6, 8:12] = 1.0
    assert ops.verify_24(w).tolist() == [[-1, -1], [6 * 70 + 8, -1], [-1, -1]]
    with pytest.raises(ValueError, match=r"weight 'w' batch 1, row 6, columns 8–11"):
        ops.pack(w, None, "2:4", "nm24_tiles", False, "w")


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PACKED)
def test_the_first_violation_is_named(dtype: torch.dtype) -> None:
    w = make_24(256, 510, dtype)
    one = torch.ones(1, device="cuda").to(dtype)
    w[200, 8:12] = one
    w[77, 507:510] = one
    w[77, 504:508] = one
    place = 77 * 510 + 504
    assert ops.verify_24(w).tolist() == [[place, -1]]
    _, verdict = ops.pack_24(w)
    assert verdict.tolist() == [[place, -1]]
    with pytest.raises(ValueError, match=r"weight 'blk' row 77, columns 504–507: more than 2"):
        ops.check_24(verdict, 510, "blk")
    with pytest.raises(ValueError, match=r"weight 'blk' row 77, columns 504–507: more than 2"):
        ops.pack(w, None, "2:4", "format", False, "blk")


@pytest.mark.parametrize("dtype", WIDE)
def test_a_weight_that_is_quantized_is_verified_and_finite(dtype: torch.dtype) -> None:
    w = make_24(40, 9000, dtype)
    w[30, 8996:9000] = 1.0
    with pytest.raises(ValueError, match=r"weight 'a' row 30, columns 8996–8999: more than 2"):
        pack_quantized(w, "2:4", name="a", layout="nm24_tiles")
    w = make_24(40, 9000, dtype)
    for row, column, what in ((7, 3, float("nan")), (31, 8999, float("inf"))):
        bad = w.clone()
        bad[row, column // 4 * 4 : column // 4 * 4 + 4] = 0
        bad[row, column] = what
        message = rf"weight 'a' row {row}, column {column}: the weight holds NaN or infinity"
        with pytest.raises(ValueError, match=message):
            pack_quantized(bad, "2:4", name="a", layout="nm24_tiles")
        _, _, verdict = ops.quantize_pack_24(bad, None, torch.int8)
        assert verdict.tolist() == [[-1, row * 9000 + column]]


def test_a_float8_nan_is_a_value_like_any_other() -> None:
    w = make_24(64, 128, torch.float8_e4m3fn)
    w.view(torch.uint8)[3, :4] = torch.tensor([0, 0x7F, 0x80, 0xFF], dtype=torch.uint8)
    reference = ops.pack(w.cpu(), None, "2:4", "nm24_tiles", False, "w")
    assert torch.equal(ops.pack(w, None, "2:4", "nm24_tiles", False, "w").cpu(), reference)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: ops.pack_24(w, torch.ones_like(w, dtype=torch.bool), prune=True), "one of them"),
        (lambda w: ops.pack_24(w, torch.ones(2, 2, dtype=torch.bool).cuda()), "mask has shape"),
        (lambda w: ops.pack_24(w, torch.ones(8, 8, dtype=torch.bool)), "mask is on the CPU"),
        (lambda w: ops.pack_24(w, layout="kcsr64"), "layout 'kcsr64' is not made on a GPU"),
        (lambda w: ops.pack_24(w.double()), "float64: float16, bfloat16, float8_e4m3fn and int8"),
        (lambda w: ops.quantize_pack_24(w.double(), None, torch.int8), "are quantized on a GPU"),
        (lambda w: ops.quantize_pack_24(w, None, torch.float32), "int8 and float8_e4m3fn are"),
        (lambda w: ops.quantize_pack_24(w[None], None, torch.int8), r"\[out, in\] is quantized"),
        (lambda w: ops.check_24(w, 8), "what pack_24 or quantize_pack_24 returned"),
        (lambda w: ops.unpack_(ops.prune_pack_24(w), w[:, :4]), "does not match"),
        (lambda w: ops.unpack_(ops.prune_pack_24(w), w.half()), "values is float16; bfloat16"),
        (lambda w: ops.pack_(ops.prune_pack_24(w), w[:4]), "both must be the same"),
        (lambda w: ops.pack_(ops.prune_pack_24(w), w.cpu()), "values is on the CPU"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    w = torch.randn(8, 8, device="cuda", dtype=torch.bfloat16)
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(w)  # type: ignore[operator]


# --- Without waiting ------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
def test_packing_is_captured_and_the_verdict_stays_on_the_device(quantized: bool) -> None:
    w = make_24(64, 256, torch.bfloat16)

    def pack() -> tuple[Tensor, Tensor]:
        if quantized:
            packed, _, verdict = ops.quantize_pack_24(w, None, torch.int8)
            return packed, verdict
        return ops.pack_24(w)

    pack()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed, verdict = pack()
    for broken in (False, True, False):
        w.copy_(make_24(64, 256, torch.bfloat16))
        if broken:
            w[9, 4:8] = 1.0
        graph.replay()
        assert verdict.tolist() == [[9 * 256 + 4 if broken else -1, -1]]
        if not broken:
            assert torch.equal(packed, pack()[0])


@pytest.mark.parametrize("dtype", PACKED)
def test_packing_in_place_keeps_the_plan(dtype: torch.dtype) -> None:
    packed = ops.pack(make_24(96, 200, dtype), None, "2:4", "nm24_tiles", False, "w")
    packed = ops.with_plan(packed, json.dumps([None, "dense", "dense"] + [None] * 5))
    w = make_24(96, 200, dtype)
    ops.pack_(packed, w)
    expected = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
    assert torch.equal(ops.unpack(packed, w.shape, dtype).float(), w.float())
    assert torch.equal(packed[256:], expected[256:])
    assert json.loads(ops.info(packed))["plan"][1] == "dense"


def test_a_model_is_quantized_without_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but headers and verdicts travels."""
    layer = nn.Linear(512, 256, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(make_24(256, 512, torch.bfloat16))
    shipped: list[tuple[int, ...]] = []
    to_cpu = Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        shipped.append(tuple(tensor.shape))
        return to_cpu(tensor)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(_ops_cuda, "_moved", None)  # by which operators go by way of the CPU
    gs.sparsify_(layer, gs.Int8DynamicActivationSemiSparseWeightConfig(plan="model"))
    reason = next(iter(gs.explain(layer))).reason
    assert reason.startswith("int8 weights, inputs quantized a token at a time: "), reason
    assert "failed" not in reason
    assert set(shipped) == {(256,)}


def test_operators_are_what_torch_asks_of_them() -> None:
    w = make_24(64, 128, torch.bfloat16)
    x = torch.randn(6, 128, device="cuda", dtype=torch.bfloat16)
    tiles = ops.prune_pack_24(w)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(ops.pack_24.default, (w,), test_utils=checks)
    opcheck(ops.quantize_pack_24.default, (w, None, torch.int8), test_utils=checks)
    opcheck(ops.verify_24.default, (w,))
    opcheck(ops.prune_pack_24.default, (w,), test_utils=checks)
    opcheck(ops.quantize_rows.default, (x, torch.int8))
    opcheck(ops.linear.default, (x, tiles, 33, 64))
    q, x_scale = ops.quantize_rows(x, torch.int8)
    packed, scale, _ = ops.quantize_pack_24(w, None, torch.int8)
    arguments = (q, x_scale, packed, 33, 64, scale, None, 0, None, torch.bfloat16, False)
    opcheck(ops.linear_quantized.default, arguments)
