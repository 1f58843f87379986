# SPDX-License-Identifier: BSD-3-Clause
"""save and load_into: round trips, other writers' files, the command's files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gossamer as gs
from io_helpers import FORMATS, Conv1D, equal, metadata, network, packed, pruned, values

# --- Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("into_packed", [False, True])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype, into_packed: bool) -> None:
    model = packed(network(dtype))
    want = values(model)
    gs.save(model, tmp_path / "m.safetensors")
    other = network(dtype)
    if into_packed:
        packed(other)
    assert not equal(other, want)
    result = gs.load_into(other, tmp_path / "m.safetensors", layout="format")
    assert result == gs.LoadResult([], [])
    assert equal(other, want)
    for name, form in FORMATS.items():
        weight = other[int(name)].weight
        assert isinstance(weight, gs.SparseWeight)
        assert weight.layout_name == form
        assert weight.pattern == model[int(name)].weight.pattern
        assert torch.equal(weight.mask(), model[int(name)].weight.mask())
    x = torch.randn(3, 64, dtype=dtype)
    assert torch.equal(other(x), model(x))


def test_the_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(packed(network()), path)
    notes, names = metadata(path), set(load_file(path))
    assert notes["gossamer.version"] == "1"
    info = json.loads(notes["gossamer.weight.1.weight"])
    assert info == {
        "format": "nm",
        "pattern": "2:4",
        "dtype": "float32",
        "shape": [64, 96],
        "transposed": False,
        "version": 1,
    }
    assert {"0.weight.bitmask", "0.weight.values", "0.weight.row_offsets"} <= names
    assert {"1.weight.values", "1.weight.indices", "3.weight.cols", "4.weight"} <= names
    assert "0.weight" not in names


def test_any_layout_is_saved_as_its_format(tmp_path: Path) -> None:
    model = nn.Sequential(pruned(256, 256, "unstructured:0.9"))
    gs.sparsify_(model, layout="kcsr128")
    assert model[0].weight.layout_name == "kcsr128"
    gs.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Linear(256, 256))
    gs.load_into(other, tmp_path / "m.safetensors", layout="kcsr64")
    assert other[0].weight.layout_name == "kcsr64"
    assert equal(other, values(model))


def test_loading_plans_for_this_machine(tmp_path: Path) -> None:
    model = nn.Sequential(pruned(512, 512, "unstructured:0.98"), pruned(512, 8, "unstructured:0.5"))
    gs.sparsify_(model, layout="format")
    gs.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 8))
    head = other[1].weight
    gs.load_into(other, tmp_path / "m.safetensors", plan="model")
    first, second = gs.explain(other)
    assert first.packed
    assert first.layout != "bitmask"
    assert first.plan
    assert first.frozen
    if not second.packed:  # copied into the parameter that was there
        assert other[1].weight is head
        assert "dense" in second.reason
    assert equal(other, values(model))
    gs.desparsify_(other)
    assert other[0].weight.requires_grad


def test_dense_files(tmp_path: Path) -> None:
    model = packed(network())
    want = values(model)
    gs.save(model, tmp_path / "dense.safetensors", packed=False)
    assert set(load_file(tmp_path / "dense.safetensors")) == set(want)
    plain = network()
    parameter = plain[0].weight
    gs.load_into(plain, tmp_path / "dense.safetensors")
    assert plain[0].weight is parameter
    assert equal(plain, want)
    assert gs.explain(plain)["0"].reason == "the file holds it dense"
    # A packed model packs what it finds again, and keeps a weight without zeros plain.
    again = packed(network())
    with torch.no_grad():
        plain[1].weight.copy_(torch.randn(64, 96))
    gs.save(plain, tmp_path / "dense.safetensors")
    gs.load_into(again, tmp_path / "dense.safetensors", layout="format")
    assert isinstance(again[0].weight, gs.SparseWeight)
    assert type(again[1].weight) is nn.Parameter
    assert equal(again, values(plain))


def test_other_dtypes_are_converted_as_load_state_dict_does(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "m.safetensors")
    other = network(torch.float64)
    gs.load_into(other, tmp_path / "m.safetensors", layout="format")
    assert other[0].weight.dtype == torch.float64
    assert isinstance(other[0].weight, gs.SparseWeight)
    assert torch.equal(other[0].weight.to_dense(), model[0].weight.to_dense().double())


def test_meta_models_get_their_memory(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(
            nn.Linear(64, 96),
            nn.Linear(96, 64),
            nn.Linear(64, 64),
            nn.Linear(64, 48),
            nn.Linear(48, 32),
            nn.BatchNorm1d(32),
        ).eval()
    gs.load_into(empty, tmp_path / "m.safetensors", layout="format")
    x = torch.randn(3, 64)
    assert torch.equal(empty(x), model(x))
    assert isinstance(empty[0].weight, gs.SparseWeight)


class OwnForward(nn.Linear):
    """Reads its weight itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT + self.bias


def holding_every_obstacle() -> nn.ModuleDict:
    model = nn.ModuleDict(
        {
            "free": nn.Linear(64, 64),
            "own": OwnForward(64, 64),
            "attention": nn.MultiheadAttention(64, 2),
            "conv1d": Conv1D(64, 64),
            "tied": nn.Linear(64, 64),
            "reader": OwnForward(64, 64),
        }
    )
    model["reader"].weight = model["tied"].weight
    return model


def test_what_stands_in_the_way_counts_on_the_meta_device_too(tmp_path: Path) -> None:
    """The file was packed by somebody who did not know the modules, as the command does."""
    path = tmp_path / "m.safetensors"
    source = holding_every_obstacle()
    weights = {
        name: parameter
        for name, parameter in source.named_parameters()
        if name.endswith("weight") and "in_proj" not in name
    }
    for name, parameter in weights.items():
        with torch.no_grad():
            parameter.mul_(torch.rand_like(parameter) < 0.1)
        owner, _, key = name.rpartition(".")
        packed_weight = gs.SparseWeight.from_dense(parameter)
        source.get_submodule(owner)._parameters[key] = nn.Parameter(packed_weight, False)
    source["reader"].weight = source["tied"].weight
    gs.save(source, path)
    material = holding_every_obstacle()
    with torch.device("meta"):
        empty = holding_every_obstacle()
    for model in (material, empty):
        gs.load_into(model, path, layout="format")
        for name, want in weights.items():
            loaded = model.get_parameter(name)
            assert isinstance(loaded, gs.SparseWeight) == (name == "free.weight"), name
            values = loaded.to_dense() if isinstance(loaded, gs.SparseWeight) else loaded
            assert torch.equal(values, want), name
        assert model["reader"].weight is model["tied"].weight
        model["own"](torch.randn(2, 64))
        model["attention"](*[torch.randn(3, 64)] * 3)
    reasons = [
        [(layer.name, layer.reason) for layer in gs.explain(model)] for model in (material, empty)
    ]
    assert reasons[0] == reasons[1]


def test_conv1d_keeps_its_orientation(tmp_path: Path) -> None:
    model = nn.Sequential(Conv1D(48, 64))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(64, 48) < 0.1)
    gs.sparsify_(model, layout="format")
    gs.save(model, tmp_path / "m.safetensors")
    info = json.loads(metadata(tmp_path / "m.safetensors")["gossamer.weight.0.weight"])
    assert info["transposed"] is True
    assert info["shape"] == [48, 64]
    other = nn.Sequential(Conv1D(48, 64))
    gs.load_into(other, tmp_path / "m.safetensors", layout="format")
    assert tuple(other[0].weight.shape) == (64, 48)
    assert equal(other, values(model))
    x = torch.randn(3, 64)
    assert torch.equal(other(x), model(x))


def test_shared_tensors_are_written_once(tmp_path: Path) -> None:
    def make() -> nn.ModuleDict:
        model = nn.ModuleDict(
            {
                "wte": nn.Embedding(50, 32),
                "head": nn.Linear(32, 50, bias=False),
                "a": pruned(64, 64, "unstructured:0.9"),
                "b": nn.Linear(64, 64),
            }
        )
        model["head"].weight = model["wte"].weight
        model["b"].weight = model["a"].weight
        return model

    path, model = tmp_path / "m.safetensors", make()
    gs.sparsify_(model, layout="format")
    gs.save(model, path)
    names, notes = set(load_file(path)), metadata(path)
    assert "head.weight" not in names
    assert notes["head.weight"] == "wte.weight"
    assert notes["b.weight"] == "a.weight"
    assert "gossamer.weight.b.weight" not in notes
    other = make()
    gs.load_into(other, path, layout="format")
    assert other["b"].weight is other["a"].weight
    assert isinstance(other["b"].weight, gs.SparseWeight)
    assert other["head"].weight is other["wte"].weight
    assert equal(other, values(model))
    # A model that does not share gets both.
    apart = make()
    apart["b"].weight = nn.Parameter(torch.zeros(64, 64))
    gs.load_into(apart, path, layout="format")
    assert torch.equal(apart["b"].weight.to_dense(), model["a"].weight.to_dense())


def test_a_packed_weight_goes_dense_where_its_place_needs_that(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = nn.ModuleDict({"layer": pruned(32, 50, "unstructured:0.9")})
    del model["layer"].bias
    model["layer"].register_parameter("bias", None)
    gs.sparsify_(model, layout="format")
    gs.save(model, path)
    other = nn.ModuleDict({"layer": nn.Embedding(50, 32)})
    gs.load_into(other, path)
    assert torch.equal(other["layer"].weight, model["layer"].weight.to_dense())


def test_views_and_strided_tensors(tmp_path: Path) -> None:
    model = nn.Module()
    base = torch.arange(12.0)
    model.register_buffer("whole", base)
    model.register_buffer("part", base[3:9])
    model.register_buffer("across", base.view(3, 4).t())
    model.register_buffer("scalar", torch.tensor(7))
    model.register_buffer("empty", torch.empty(0, 3))
    model.register_buffer("empty_too", torch.empty(0, 3))
    gs.save(model, tmp_path / "m.safetensors")
    want = values(model)
    other = copy.deepcopy(model)
    for buffer in other.buffers():
        buffer.zero_()
    gs.load_into(other, tmp_path / "m.safetensors")
    assert equal(other, want)


# --- The command reads and writes the same files --------------------------------------------------

needs_command = pytest.mark.skipif(
    "GOSSAMER_BIN" not in os.environ, reason="GOSSAMER_BIN does not name the gossamer command"
)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [os.environ["GOSSAMER_BIN"], *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@needs_command
def test_the_command_unpacks_what_save_wrote(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "packed.safetensors")
    command("unpack", tmp_path / "packed.safetensors", "-o", tmp_path / "dense.safetensors")
    want, got = values(model), load_file(tmp_path / "dense.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@needs_command
def test_load_into_reads_what_the_command_packed(tmp_path: Path) -> None:
    model = packed(network())
    gs.save(model, tmp_path / "dense.safetensors", packed=False)
    command("pack", tmp_path / "dense.safetensors", "-o", tmp_path / "packed.safetensors")
    other = network()
    gs.load_into(other, tmp_path / "packed.safetensors", layout="format")
    assert isinstance(other[0].weight, gs.SparseWeight)
    assert equal(other, values(model))
