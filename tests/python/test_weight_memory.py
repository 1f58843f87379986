# SPDX-License-Identifier: BSD-3-Clause
"""Packed weights between processes, and refusals where dense memory is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import gossamer as gs


def packed_linear(memory_of_dense: bool = False) -> nn.Linear:
    linear = nn.Linear(64, 96)
    with torch.no_grad():
        linear.weight.mul_(torch.rand(96, 64) < 0.1)
    gs.sparsify_(linear, layout="kcsr64")
    if memory_of_dense:
        weight = linear.weight
        with_dense = gs.SparseWeight.from_packed(weight.packed, dense=weight.to_dense())
        linear.weight = nn.Parameter(with_dense, requires_grad=False)
    return linear


# --- Sharing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_of_dense", [False, True])
def test_share_memory_of_a_packed_model(memory_of_dense: bool) -> None:
    model = packed_linear(memory_of_dense)
    x = torch.randn(5, 64)
    want, dense = model(x), model.weight.to_dense()
    assert not model.weight.is_shared()
    assert model.share_memory() is model
    assert isinstance(model.weight, gs.SparseWeight)
    assert model.weight.is_shared()
    assert model.weight.packed.is_shared()
    assert model.bias.is_shared()
    assert (model.weight.dense is not None) == memory_of_dense
    assert torch.equal(model.weight.to_dense(), dense)
    assert torch.equal(model(x), want)


def run_in_child(model: nn.Linear, x: Tensor, queue: mp.Queue) -> None:
    is_packed = isinstance(model.weight, gs.SparseWeight) and model.weight.is_shared()
    queue.put((is_packed, isinstance(model.weight, nn.Parameter), model(x).detach().numpy()))
    model.weight.packed[-1] = 77  # padding, which nothing reads


def test_another_process_computes_on_the_same_bytes() -> None:
    model = packed_linear().share_memory()
    x = torch.randn(5, 64)
    context = mp.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=run_in_child, args=(model, x, queue))
    child.start()
    is_packed, is_parameter, y = queue.get(timeout=120)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert is_packed
    assert is_parameter
    assert np.array_equal(y, model(x).detach().numpy())
    assert int(model.weight.packed[-1]) == 77


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name", "remedy"),
    [
        (lambda w: w.numpy(), "numpy", r"weight\.to_dense\(\)\.numpy\(\)"),
        (lambda w: np.asarray(w), "__array__", r"weight\.to_dense\(\)\.numpy\(\)"),
        (lambda w: np.from_dlpack(w), "__dlpack__", r"weight\.to_dense\(\)"),
        (lambda w: w.tolist(), "tolist", r"weight\.to_dense\(\)\.tolist\(\)"),
        (lambda w: w.data_ptr(), "data_ptr", r"weight\.packed\.data_ptr\(\)"),
        (lambda w: w.untyped_storage(), "untyped_storage", r"weight\.packed"),
        (lambda w: w.storage(), "storage", r"weight\.packed"),
        (lambda w: w.apply_(lambda v: v), "apply_", r"weight\.to_dense\(\)\.apply_"),
        (lambda w: w.map_(w, lambda a, b: a), "map_", r"weight\.to_dense\(\)\.map_"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_what_needs_dense_memory_is_refused(
    call: Callable[[Tensor], object], name: str, remedy: str
) -> None:
    weight = packed_linear().weight
    with pytest.raises(NotImplementedError, match=rf"Tensor\.{name}: a packed weight.*{remedy}"):
        call(weight)


def test_other_writers_of_safetensors_name_ours(tmp_path: Path) -> None:
    model = packed_linear()
    path = tmp_path / "m.safetensors"
    with pytest.raises(NotImplementedError, match=r"gossamer\.save\(model, path\)"):
        safetensors.torch.save_file(model.state_dict(), path)
    with pytest.raises(NotImplementedError, match=r"gossamer\.save\(model, path\)"):
        safetensors.torch.save_model(model, str(path))
    assert not path.exists()
