# SPDX-License-Identifier: BSD-3-Clause
"""`copy_` and `load_state_dict` write a packed weight's values where the old ones lie."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import _layout_argument
from gossamer._quantization import pack_quantized
from gossamer.weight import SparseWeight

OUT, IN = 64, 128
LAYOUTS = ("nm", "nm24_tiles", "nm24_pairs", "nm+kcsr128")


def make_24(dtype: torch.dtype = torch.float32) -> Tensor:
    w = torch.randn(OUT, IN) + 3
    w.view(OUT, IN // 4, 4)[..., ::2] = 0
    return w.to(dtype)


def addresses(weight: SparseWeight) -> list[int | None]:
    tensors = (weight.packed, weight.scale, weight.dense)
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_bytes_stay_where_they_are(layout: str, is_packed: bool) -> None:
    dtype = torch.bfloat16 if layout == "nm24_tiles" else torch.float32
    weight = SparseWeight.from_dense(make_24(dtype), "2:4", layout=layout)
    new = make_24(dtype)
    source = SparseWeight.from_dense(new, "2:4") if is_packed else new
    before = addresses(weight)
    weight.copy_(source)
    assert addresses(weight) == before
    assert weight.layout_name == layout
    assert torch.equal(weight.to_dense(), new)
    torch.ops.gossamer.validate(weight.packed)


def test_scales_and_a_dense_copy_stay_where_they_are() -> None:
    first, second = make_24(torch.bfloat16), make_24(torch.bfloat16)
    packed, scale = pack_quantized(first, "2:4", layout="nm24_tiles")
    weight = SparseWeight.from_quantized(packed, scale, torch.bfloat16, dense=first.clone())
    file = weight.canonical()
    values = file.to_dense()
    before = addresses(weight)
    weight.copy_(second)
    assert addresses(weight) == before
    assert weight.dense is not None
    expected, scale = pack_quantized(second, "2:4", layout="nm24_tiles")
    assert torch.equal(weight.packed, expected)
    assert torch.equal(weight.scale, scale)
    assert torch.equal(weight.dense, weight.to_dense())
    # What was made of the weight before is its own.
    assert torch.equal(file.to_dense(), values)


def test_a_state_dict_is_loaded_into_the_same_memory() -> None:
    layers = []
    for _ in range(2):
        layer = nn.Linear(IN, OUT)
        weight = SparseWeight.from_dense(make_24(), "2:4", layout="nm24_pairs")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layers.append(layer)
    target, source = layers
    view = target.weight.detach()
    before = addresses(target.weight)  # type: ignore[arg-type]
    target.load_state_dict(source.state_dict())
    assert addresses(target.weight) == before  # type: ignore[arg-type]
    x = torch.randn(5, IN)
    assert torch.equal(target(x), source(x))
    # An alias shares the memory, as one of a dense parameter does.
    assert torch.equal(F.linear(x, view, target.bias), source(x))
    target.load_state_dict(target.state_dict())
    assert torch.equal(target(x), source(x))


def test_more_values_take_other_memory() -> None:
    w = torch.randn(OUT, IN)
    few, many = w * (w > 1), w * (w > 0.5)
    weight = SparseWeight.from_dense(few, "unstructured")
    old, address = weight.packed.clone(), weight.packed.data_ptr()
    held = weight.packed
    weight.copy_(many)
    assert weight.packed.data_ptr() != address
    assert torch.equal(weight.to_dense(), many)
    assert torch.equal(held, old)  # what others hold is not half written


def test_bytes_of_inference_mode_are_replaced_outside_of_it() -> None:
    with torch.inference_mode():
        packed = torch.ops.gossamer.pack(make_24(), None, "2:4", "nm", False, "w")
    weight = SparseWeight.from_packed(packed)
    new = make_24()
    weight.copy_(new)
    assert torch.equal(weight.to_dense(), new)


def test_the_plan_of_a_gpu_stays() -> None:
    weight = SparseWeight.from_dense(make_24(torch.bfloat16), "2:4", layout="nm24_tiles")
    plan = _layout_argument.plan_bits([5, 0, 3], table=1)
    weight = weight._replace(weight.packed, None, plan)
    for source in (make_24(torch.bfloat16), copy.deepcopy(weight)._replace(weight.packed, None, 0)):
        weight.copy_(source)
        assert weight._facts.plan == plan
