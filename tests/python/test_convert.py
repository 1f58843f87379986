# SPDX-License-Identifier: BSD-3-Clause
"""Dense + mask to packed and back: the quick ways give what the core's encoders give."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import gossamer
from isa_helpers import assert_all_levels_print_one_hash

ops = torch.ops.gossamer

SHAPES = [(1, 1), (3, 5), (1, 4), (7, 70), (64, 128), (33, 200), (2, 6, 33), (3, 4, 64)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def weight(shape: tuple[int, ...], pattern: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values (some zero, some negative zero, none zero where dropped) and a mask."""
    values = torch.randint(-3, 4, shape).to(dtype)
    values[values == 1] = -0.0
    scores = torch.rand(shape)
    mask = ops.select_masks([scores], pattern, "tensor")[0]
    return values.where(mask, 7), mask


def arrays(packed: Tensor) -> list[Tensor]:
    return ops.format_arrays(packed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.4", "unstructured:0.9"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_as_the_core(shape: tuple[int, ...], pattern: str, dtype: torch.dtype) -> None:
    values, mask = weight(shape, pattern, dtype)
    for own in (mask, None):
        dense = values.where(mask, 0)
        given = dense if own is None else values
        packed = ops.pack(given, own, pattern, "format", False, "w")
        ops.validate(packed)
        # float64 has no quick way.
        want = arrays(ops.pack(given.double(), own, pattern, "format", False, "w"))
        for got, expected in zip(arrays(packed), want, strict=True):
            assert torch.equal(got.double(), expected.double())
            assert not (got.double().signbit() & (got == 0)).any()
        again = ops.unpack(packed, shape, dtype)
        assert torch.equal(again, dense)
        assert not (again.signbit() & (again == 0)).any()
        wide = ops.pack(given.double(), own, pattern, "format", False, "w")
        kept = ops.unpack_mask(packed, shape)
        assert torch.equal(kept, ops.unpack_mask(wide, shape))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.5"])
def test_strided_weights(pattern: str) -> None:
    values, mask = weight((24, 96), pattern, torch.bfloat16)
    want = ops.pack(values, mask, pattern, "format", False, "w")
    wide = torch.zeros(24, 200, dtype=torch.bfloat16)
    wide[:, 3:99] = values
    marks = torch.zeros(24, 100, dtype=torch.bool)
    marks[:, 1:97] = mask
    assert torch.equal(ops.pack(wide[:, 3:99], marks[:, 1:97], pattern, "format", False, "w"), want)
    across = values.T.contiguous().T
    assert torch.equal(ops.pack(across, mask, pattern, "format", False, "w"), want)
    ops.unpack_(want, wide[:, 5:101], marks[:, 2:98])
    assert torch.equal(wide[:, 5:101], values.where(mask, 0))
    assert torch.equal(marks[:, 2:98], ops.unpack_mask(want, [24, 96]))
    assert (wide[:, 101:] == 0).all()


def test_violations_are_named_as_before() -> None:
    values = torch.ones(8, 16, dtype=torch.bfloat16)
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[5, 8:11] = True
    with pytest.raises(ValueError, match="weight 'w' row 5, columns 8–11: 3 non-zeros, 2:4"):
        ops.pack(values, mask, "2:4", "format", False, "w")
    with pytest.raises(ValueError, match="row 5, column 10: non-zero number 3 of 3"):
        ops.pack(values, mask, f"unstructured:{1 - 2 / 128}", "format", False, "w")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.5", "4:8", "fanin:0.5"])
def test_packing_and_unpacking_in_place(pattern: str, dtype: torch.dtype) -> None:
    first, mask = weight((16, 64), pattern, dtype)
    packed = ops.pack(first, mask, pattern, "format", False, "w")
    second, other = weight((16, 64), pattern, dtype)
    where = packed.data_ptr()
    ops.pack_(packed, second, other)
    assert packed.data_ptr() == where
    assert torch.equal(packed, ops.pack(second, other, pattern, "format", False, "w"))
    values, kept = torch.empty_like(first), torch.empty_like(mask)
    ops.unpack_(packed, values, kept)
    assert torch.equal(values, second.where(other, 0))
    assert torch.equal(kept, other)


def test_opcheck_in_place() -> None:
    values, mask = weight((16, 64), "unstructured:0.5", torch.float32)
    packed = ops.pack(values, mask, "unstructured:0.5", "format", False, "w")
    torch.library.opcheck(ops.pack_.default, (packed, values, mask))
    torch.library.opcheck(ops.unpack_.default, (packed, values, mask))


def test_packing_in_place_keeps_the_plan() -> None:
    values, mask = weight((16, 64), "unstructured:0.5", torch.float32)
    packed = ops.pack(values, mask, "unstructured:0.5", "format", False, "w")
    planned = ops.with_plan(packed, json.dumps(["dense"] * 8))
    before = gossamer._ops.info(planned)["plan"]
    assert any(before)
    other = mask.flip(0)
    ops.pack_(planned, values, other)
    assert gossamer._ops.info(planned)["plan"] == before
    assert torch.equal(ops.unpack_mask(planned, [16, 64]), other)


def test_what_cannot_be_done_in_place_changes_nothing() -> None:
    values, mask = weight((16, 64), "unstructured:0.5", torch.bfloat16)
    packed = ops.pack(values, mask, "unstructured:0.5", "format", False, "w")
    before = packed.clone()
    fewer = mask.clone()
    fewer[3] = False
    more = torch.ones_like(mask)
    for arguments, message in (
        ((packed, values, fewer), "keep as many as before"),
        ((packed, values, more), "allows 512 of 1024"),
        ((packed, values.float(), mask), "values are float32"),
        ((packed, values[:8], mask[:8]), "does not match"),
        ((packed, values, mask[:8]), "mask: shape"),
        ((packed, values, mask.float()), "mask: dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.pack_(*arguments)
        assert torch.equal(packed, before)
    with pytest.raises(ValueError, match="does not match"):
        ops.unpack_(packed, values[:8], None)
    groups, kept = weight((8, 16), "2:4", torch.bfloat16)
    packed = ops.pack(groups, kept, "2:4", "format", False, "w")
    before = packed.clone()
    kept[7, 12:] = True
    with pytest.raises(ValueError, match="row 7, columns 12–15"):
        ops.pack_(packed, groups, kept)
    assert torch.equal(packed, before)


_HASH = """
import hashlib, torch, gossamer
torch.manual_seed(0)
ops, found = torch.ops.gossamer, hashlib.sha256()
for shape in ((5, 300), (64, 640), (3, 7, 33), (1, 9)):
    for dtype in (torch.bfloat16, torch.float32):
        for pattern in ("2:4", "unstructured:0.3", "unstructured:0.95"):
            values = torch.randint(-2, 3, shape).to(dtype)
            mask = ops.select_masks([torch.rand(shape)], pattern, "tensor")[0]
            for own in (mask, None):
                given = values if own is not None else values.where(mask, 0)
                packed = ops.pack(given, own, pattern, "format", False, "w")
                dense = torch.full_like(values, 9)
                kept = torch.empty_like(mask)
                ops.unpack_(packed, dense, kept)
                for one in (packed, dense.float(), kept):
                    found.update(one.numpy().tobytes())
print(found.hexdigest())
"""


def test_all_instruction_sets_convert_alike() -> None:
    assert_all_levels_print_one_hash(_HASH)


def test_large_results_are_written_whole() -> None:
    # Larger than the last cache, so that stores go past it; not on machines where it is huge.
    cache = gossamer.machine().l3_bytes
    rows = cache // 8192 + 1 if cache <= 64 << 20 else 64
    values, mask = weight((rows, 8192), "2:4", torch.bfloat16)
    packed = ops.pack(values, mask, "2:4", "format", False, "w")
    assert torch.equal(ops.unpack(packed, values.shape, torch.bfloat16), values.where(mask, 0))
    assert torch.equal(ops.unpack_mask(packed, values.shape), mask)
