# SPDX-License-Identifier: BSD-3-Clause
"""Packed weights that are held in two layouts, one for few tokens and one for many."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer import _ops
from gossamer.weight import SparseWeight

ops = torch.ops.gossamer
FEW, MANY = "generic_linear_bitmask_f32", "generic_spmm_kcsr128_f32"
PLAN = [FEW] * 3 + [MANY] * 5
BOTH = "bitmask+kcsr128"
OUT, INPUTS = 48, 132


def sparse_values(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(OUT, INPUTS, generator=generator)
    return values * (torch.rand(OUT, INPUTS, generator=generator) < 0.5)


def two_layouts(values: Tensor | None = None, names: str = BOTH) -> SparseWeight:
    values = sparse_values() if values is None else values
    packed = SparseWeight.from_dense(values, layout=names).packed
    return SparseWeight.from_packed(ops.with_plan(packed, json.dumps(PLAN)))


def layer() -> nn.Linear:
    linear = nn.Linear(INPUTS, OUT)
    linear.weight = nn.Parameter(two_layouts(), requires_grad=False)
    return linear


def check_whole(weight: SparseWeight, values: Tensor) -> None:
    """It holds these values, in both layouts, planned as above, and computes with either."""
    assert weight.layout_name == BOTH
    assert weight.plan == PLAN
    ops.validate(weight.packed)
    assert torch.equal(weight.to_dense(), values)
    for tokens in (1, 5, 70):
        x = torch.randn(tokens, INPUTS)
        # 132 products: an absolute error of a few units of their sum's size.
        torch.testing.assert_close(F.linear(x, weight), x @ values.T, atol=2e-5, rtol=1e-5)


def layout_bytes(name: str) -> int:
    return SparseWeight.from_dense(sparse_values(), layout=name).packed.numel()


def test_one_tensor_holds_both() -> None:
    weight = two_layouts()
    check_whole(weight, sparse_values())
    assert weight.packed.numel() == layout_bytes("bitmask") + layout_bytes("kcsr128")
    assert weight.packed_bytes == weight.packed.numel()
    assert BOTH in repr(weight)
    reverse = two_layouts(names="kcsr128+bitmask")
    assert reverse.layout_name == "kcsr128+bitmask"
    assert torch.equal(reverse.to_dense(), weight.to_dense())
    for wrong in ("bitmask+bitmask", "bitmask+", "bitmask+nothing", "bitmask+kcsr64+kcsr128"):
        with pytest.raises(ValueError, match=r"twice|not known"):
            SparseWeight.from_dense(sparse_values(), layout=wrong)


def test_each_bucket_reads_its_own_layout() -> None:
    weight = two_layouts()
    want = {tokens: F.linear(torch.ones(tokens, INPUTS), weight) for tokens in (1, 5, 9, 70)}
    begin = layout_bytes("bitmask")
    weight.packed[begin + 256 : begin + 256 + 4] = torch.tensor([0, 0, 0x80, 0x44]).byte()  # 1024
    for tokens, y in want.items():
        is_same = torch.equal(F.linear(torch.ones(tokens, INPUTS), weight), y)
        assert is_same == (tokens <= 8), tokens
    with pytest.raises(ValueError, match="do not hold the same weight"):
        ops.validate(weight.packed)


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda w: pickle.loads(pickle.dumps(w)),
        lambda w: w.clone(),
        lambda w: w.detach(),
        lambda w: w.to("cpu", copy=True),
        lambda w: w.to(torch.float32),
        lambda w: w.t().t(),
    ],
    ids=["deepcopy", "pickle", "clone", "detach", "to copy", "to", "transposed twice"],
)
def test_copies_hold_both(again: Callable[[SparseWeight], SparseWeight]) -> None:
    check_whole(again(two_layouts()), sparse_values())


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_and_torch_save(assign: bool) -> None:
    model = layer()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    check_whole(loaded["weight"], sparse_values())
    other = layer()
    other.weight.copy_(sparse_values(1))
    other.load_state_dict(loaded, assign=assign)
    check_whole(other.weight, sparse_values())


def parts_of(path: Path) -> tuple[dict, bytes]:
    """Header and data of a file; the header's keys have no order."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def test_one_format_is_saved(tmp_path: Path) -> None:
    model, plain = layer(), nn.Linear(INPUTS, OUT)
    with torch.no_grad():
        plain.weight.copy_(sparse_values())
        plain.bias.copy_(model.bias)
    gs.sparsify_(plain, layout="format")
    gs.save(model, tmp_path / "both.safetensors")
    gs.save(plain, tmp_path / "one.safetensors")
    assert parts_of(tmp_path / "both.safetensors") == parts_of(tmp_path / "one.safetensors")
    gs.load_into(nn.Linear(INPUTS, OUT), tmp_path / "both.safetensors")
    assert two_layouts().canonical().layout_name == "bitmask"


def test_copy_keeps_both_layouts_and_the_plan() -> None:
    target = two_layouts()
    target.copy_(sparse_values(1))
    check_whole(target, sparse_values(1))
    target.copy_(SparseWeight.from_dense(sparse_values(2), layout="kcsr64"))
    check_whole(target, sparse_values(2))
    alone = SparseWeight.from_dense(sparse_values(), layout="kcsr64")
    alone.copy_(two_layouts(sparse_values(3)))
    assert alone.layout_name == "kcsr64"
    assert torch.equal(alone.to_dense(), sparse_values(3))


def test_aliases_share_the_bytes() -> None:
    weight = nn.Parameter(two_layouts(), requires_grad=False)
    assert weight.data.packed is weight.packed
    assert weight.detach().packed is weight.packed


def test_casts_are_planned_anew() -> None:
    cast = two_layouts().to(torch.float64)
    assert torch.equal(cast.to_dense(), sparse_values().double())
    half = two_layouts().to(torch.bfloat16)
    x = torch.randn(3, INPUTS).bfloat16()
    want = x.double() @ half.to_dense().double().T
    torch.testing.assert_close(F.linear(x, half).double(), want, atol=0.1, rtol=2**-7)


def test_compiled_and_exported() -> None:
    model = layer()
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    tokens = torch.export.Dim("tokens", min=2, max=512)
    program = torch.export.export(model, (torch.randn(4, INPUTS),), dynamic_shapes=({0: tokens},))
    file = io.BytesIO()
    torch.export.save(program.run_decompositions({}), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        for count in (2, 7, 9, 100):
            x = torch.randn(count, INPUTS)
            assert torch.equal(compiled(x), model(x))
            assert torch.equal(loaded(x), model(x))


def test_operators_are_sound() -> None:
    weight = two_layouts()
    x = torch.randn(3, INPUTS)
    torch.library.opcheck(ops.linear.default, (x, weight.packed, weight.layout_code, OUT))
    torch.library.opcheck(ops.fill_second_.default, (weight.packed.clone(), "kcsr128"))
    x.requires_grad_()
    F.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, sparse_values().sum(0).expand(3, -1))


def test_packing_in_place_fills_both() -> None:
    weight = two_layouts()
    mask = sparse_values() != 0
    other = torch.where(mask, torch.randn(OUT, INPUTS), 0.0)
    ops.pack_(weight.packed, other, mask)
    check_whole(weight, other)
    before = weight.packed.clone()
    mask[0] = False  # 64 bytes are filled up with zeros, so that one value less would still fit
    with pytest.raises(ValueError, match="keep as many as before"):
        ops.pack_(weight.packed, other * mask, mask)
    assert torch.equal(weight.packed, before)


def test_rows_of_it_are_in_the_first_layout() -> None:
    packed = two_layouts().packed
    part = ops.slice_rows(packed, 8, 24)
    assert _ops.info(part)["layout"] == "bitmask"
    whole = ops.concat_rows([ops.slice_rows(packed, 0, 8), part, ops.slice_rows(packed, 24, OUT)])
    assert torch.equal(ops.unpack(whole, [OUT, INPUTS], torch.float32), sparse_values())


def test_convolutions_run_in_either() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16, 8, 3, 3, generator=generator)
    values *= torch.rand(16, 8, 3, 3, generator=generator) < 0.3
    packed = SparseWeight.from_dense(values, layout="kcsr64+kcsr256").packed
    few, many = "generic_conv2d_kcsr64_f32", "generic_conv2d_kcsr256_f32"
    rows = {row.name for row in gs.kernels()}
    assert {few, many} <= rows
    weight = SparseWeight.from_packed(ops.with_plan(packed, json.dumps([few] * 5 + [many] * 3)))
    assert weight.layout_name == "kcsr64+kcsr256"
    begin = SparseWeight.from_dense(values, layout="kcsr64").packed.numel()
    for side in (3, 20):
        x = torch.randn(1, 8, side, side)
        want = F.conv2d(x, values, padding=1)
        torch.testing.assert_close(F.conv2d(x, weight, padding=1), want, atol=2e-5, rtol=1e-5)
    spoilt = weight.clone()
    spoilt.packed[begin + 256 : begin + 260] = torch.tensor([0, 0, 0x80, 0x44]).byte()
    for side, is_same in ((3, True), (20, False)):
        x = torch.ones(1, 8, side, side)
        y = F.conv2d(x, weight, padding=1)
        assert torch.equal(F.conv2d(x, spoilt, padding=1), y) == is_same


# --- Plans ----------------------------------------------------------------------------------------


def planned(memory: str, kernel: str = "") -> tuple[Tensor, dict]:
    values = sparse_values()
    packed = SparseWeight.from_dense(values).packed
    found, text = ops.plan(packed, values, False, 0, "measure", memory, kernel, "off")
    return found, json.loads(text)


def test_low_memory_keeps_one() -> None:
    packed, found = planned("low")
    assert found["second"] is None
    assert not found["sparse"] or "+" not in _ops.info(packed)["layout"]


def test_a_forced_kernel_keeps_one() -> None:
    packed, found = planned("default", MANY)
    assert found["second"] is None
    assert _ops.info(packed)["layout"] == "kcsr128"


def test_explain_says_so() -> None:
    model = layer()
    model.gossamer_report = {
        "packed": True,
        "reason": "sparse in layouts bitmask and kcsr128",
        "pattern": model.weight.pattern,
        "trainable": False,
        "plan": [],
        **{key: _ops.info(model.weight.packed)[key] for key in ("dtype", "kept", "layout")},
    }
    report = gs.explain(model)[""]
    assert report.layout == BOTH
    assert report.packed_bytes == model.weight.packed.numel()
    assert "bitmask and kcsr128" in report.reason


def test_a_second_layout_can_be_made_later() -> None:
    """What `plan` leaves out of a large weight: here with the room alone."""
    weight = two_layouts()
    begin = layout_bytes("bitmask")
    later = weight.packed.clone()
    later[begin:] = 0
    with pytest.raises(ValueError, match="GSMR"):
        _ops.info(later)
    with pytest.raises(ValueError, match="GSMR"):
        ops.linear(torch.randn(70, INPUTS), later, weight.layout_code, OUT)
    with pytest.raises(ValueError, match="left"):
        ops.fill_second_(later, "kcsr64")
    ops.fill_second_(later, "kcsr128")
    assert torch.equal(later, weight.packed)
    with pytest.raises(ValueError, match="unfilled"):
        ops.fill_second_(SparseWeight.from_dense(sparse_values()).packed, "kcsr128")
