# SPDX-License-Identifier: BSD-3-Clause
"""explain, the machine's report, the names of torchao, the package."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.compat import torchao
from sparsify_helpers import GENERIC, HEADINGS, VERY_SPARSE, close, mlp, prune_

# --- explain --------------------------------------------------------------------------------------


def test_the_table_fits_and_names_every_layer() -> None:
    names = {"a_rather_long_name_of_a_block.with_a_sublayer" + str(i): None for i in range(2)}
    model = nn.Module()
    for name in names:
        layer = nn.Linear(512, 512)
        prune_(layer.weight, VERY_SPARSE)
        block = nn.Module()
        block.add_module(name.split(".")[1], layer)
        model.add_module(name.split(".")[0] + name[-1], block)
    gs.sparsify_(model, plan="model")
    text = str(gs.explain(model))
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0].split() == HEADINGS
    assert "2 of 2 weights packed" in text
    assert VERY_SPARSE in text


def test_json_and_lookup() -> None:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512, 10)), plan="model")
    explanation = gs.explain(model)
    rows = json.loads(explanation.to_json())
    assert [row["name"] for row in rows] == ["0", "2"] == [layer.name for layer in explanation]
    assert len(explanation) == 2
    first = explanation["0"]
    assert first.dense_bytes == 512 * 512 * 4
    assert first.packed_bytes == model[0].weight.packed_bytes < first.dense_bytes
    assert first.layout == model[0].weight.layout_name
    assert first.density == pytest.approx(0.02, abs=1e-3)
    assert first.kernel in [bucket.kernel for bucket in first.plan]
    assert first.speedup > 1
    with pytest.raises(KeyError, match="there are: 0, 2"):
        explanation["1"]


def test_rich_table() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(gs.explain(gs.sparsify_(mlp(), layout=GENERIC)))
    assert "2 of 2 weights packed" in console.export_text()


# --- What has changed since a weight was planned --------------------------------------------------


def planned() -> nn.Sequential:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512)), plan="model")
    report = gs.explain(model)["0"]
    assert report.speedup is not None
    assert report.speedup > 1
    return model


@pytest.mark.parametrize("pack_first", [False, True])
def test_figures_of_other_values_are_not_shown(pack_first: bool) -> None:
    model, source = planned(), mlp("unstructured:0.5", sizes=(512, 512))
    dense = source[0].weight.detach().clone()
    if pack_first:
        gs.sparsify_(source, layout="bitmask")
    model.load_state_dict(source.state_dict())
    assert torch.equal(model[0].weight.to_dense(), dense)
    report = gs.explain(model)["0"]
    assert report.density == 0.5
    assert report.speedup is None
    assert report.plan == ()
    assert "other values than it was planned for (2.00% kept then, 50.00% now)" in report.reason
    assert "sparsify_ plan it again" in report.reason


def test_an_unpruned_state_dict_runs_dense() -> None:
    model, dense = planned(), mlp("unstructured:0.0", sizes=(512, 512))
    model.load_state_dict(dense.state_dict())
    assert set(model[0].weight.plan) == {"dense"}
    assert "so a dense copy runs" in gs.explain(model)["0"].reason
    for tokens in (1, 70):
        x = torch.randn(tokens, 512)
        torch.testing.assert_close(model(x), dense(x))


def test_equally_many_other_values_keep_their_figures() -> None:
    model = planned()
    before = gs.explain(model)["0"]
    model.load_state_dict(mlp(VERY_SPARSE, sizes=(512, 512)).state_dict())
    after = gs.explain(model)["0"]
    assert (after.plan, after.reason) == (before.plan, before.reason)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_is_planned_anew_or_said_to_be_unplanned(dtype: torch.dtype) -> None:
    model = planned()
    plain = gs.desparsify_(copy.deepcopy(model)).to(dtype)
    model.to(dtype)
    report = gs.explain(model)["0"]
    assert report.speedup is None
    assert report.plan == ()
    assert f"cast from float32 to {str(dtype).removeprefix('torch.')}" in report.reason
    # The model plans a dense weight of the new dtype alike, or leaves it dense.
    wanted = gs.explain(gs.sparsify_(plain, plan="model"))["0"]
    if wanted.packed:
        assert "the cost model chose its kernels anew" in report.reason
        assert model[0].weight.plan == [bucket.kernel for bucket in wanted.plan]
        assert report.kernel == wanted.kernel
    else:
        assert set(model[0].weight.plan) == {"dense"}
        assert "to be faster than dense, so a dense copy runs" in report.reason
    x = torch.randn(3, 512, dtype=dtype)
    expected = plain(x)
    torch.testing.assert_close(model(x), expected)


def test_a_layout_that_was_asked_for_and_is_gone_is_named() -> None:
    model = gs.sparsify_(mlp(sizes=(512, 512)), layout="kcsr128").double()
    reason = gs.explain(model)["0"].reason
    assert "cast from float32 to float64" in reason
    assert "in layout bitmask now and was not compared with dense" in reason
    fixed = gs.sparsify_(mlp("2:4", sizes=(512, 512)), layout="nm24_pairs")
    fixed.load_state_dict(gs.sparsify_(mlp(sizes=(512, 512)), layout="format").state_dict())
    assert "packed in layout nm24_pairs and is in bitmask now" in gs.explain(fixed)["0"].reason


# --- The machine, the old names, the package ------------------------------------------------------


def test_machine_and_kernels() -> None:
    machine = gs.machine()
    assert set(machine.isa) <= set(machine.isa_detected)
    assert machine.cores >= 1
    rows = gs.kernels()
    assert [row.name for row in rows] == sorted(row.name for row in rows)
    assert any(row.runs_here for row in rows)
    assert all(set(row.needs) <= set(machine.isa) for row in rows if row.runs_here)


def test_names_of_torchao() -> None:
    assert torchao.semi_sparse_weight is gs.SemiSparseWeightConfig
    model = mlp("2:4")
    plain, x = copy.deepcopy(model), torch.randn(5, 64)
    returned = torchao.sparsify_(model, torchao.semi_sparse_weight())
    assert returned is model
    close(model(x), plain, x)
    block = nn.Linear(128, 128)
    prune_(block.weight, "block:64x64:0.5")
    plain_block, x = copy.deepcopy(block), torch.randn(2, 3, 128)
    torchao.sparsify_(block, torchao.block_sparse_weight(blocksize=64))
    close(block(x), plain_block, x)


def test_apply_fake_sparsity() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    before = copy.deepcopy(model)
    torchao.apply_fake_sparsity(model, filter_fn=lambda module, name: name == "0")
    want = before[0].weight * torch.ops.gossamer.magnitude_mask(
        before[0].weight.detach(), "2:4", "tensor"
    )
    assert torch.equal(model[0].weight, want)
    assert torch.equal(model[2].weight, before[2].weight)
    assert type(model[0]) is nn.Linear
    torchao.apply_fake_sparsity(model)
    assert model[2].weight.view(16, 8, 4).count_nonzero(-1).eq(2).all()


def test_every_public_name_exists() -> None:
    for name in gs.__all__:
        assert getattr(gs, name) is not None
    assert gs.__version__[0].isdigit()
