# SPDX-License-Identifier: BSD-3-Clause
"""The `gossamer` command and the Python package see a convolution as the same matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gossamer as gs
from cli_helpers import gossamer, report

PATTERNS = [
    "unstructured:0.7",
    "2:4",
    "block:4x4:0.5",
    "block:3x5:0.5",
    "fanin:0.6",
    "vnm:4:2:8",
]


def network() -> nn.ModuleDict:
    """Two convolutions and a linear layer, with many equal magnitudes: ties must fall alike."""
    layers = {
        "a": nn.Conv2d(6, 8, 3, bias=False),
        "b": nn.Conv2d(10, 9, (2, 5), bias=False),
        "c": nn.Linear(33, 12, bias=False),
    }
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(torch.randint(1, 6, layer.weight.shape) * 0.25)
            layer.weight.mul_(torch.randint(0, 2, layer.weight.shape) * 2 - 1)
    return nn.ModuleDict(layers)


@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_prune_a_convolution_alike(tmp_path: Path, pattern: str, scope: str) -> None:
    model = network()
    path, out = tmp_path / "m.safetensors", tmp_path / "pruned.safetensors"
    save_file(model.state_dict(), path)
    gossamer("prune", path, "-p", pattern, "--scope", scope, "-o", out)
    pruner = gs.Magnitude(pattern, scope=scope)
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    got = load_file(out)
    for name, want in model.state_dict().items():
        assert 0 < int((want == 0).sum()) < want.numel()
        assert torch.equal(got[name], want), name


def test_verify_and_inspect_read_blocks_across_taps(tmp_path: Path) -> None:
    # Blocks of 16 inputs over 8 channels hold two taps each.
    path = tmp_path / "m.safetensors"
    model = nn.ModuleDict({"conv": nn.Conv2d(8, 32, 4, bias=False)})
    pruner = gs.Magnitude("block:16x16:0.5")
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    save_file(model.state_dict(), path)
    assert report("verify", path, "-p", "block:16x16:0.5")["ok"]
    (row,) = report("inspect", path)["tensors"]
    assert row["pattern"] == "block:16x16:0.5"


def test_inspect_names_no_groups_that_cross_taps(tmp_path: Path) -> None:
    # 6 channels: channels last, every 4 of [out, 6·taps] hold 1, but the groups are not in a tap.
    path = tmp_path / "m.safetensors"
    matrix = torch.zeros(8, 6 * 4)
    matrix[:, ::4] = 1.0
    weight = matrix.view(8, 2, 2, 6).permute(0, 3, 1, 2).contiguous()
    save_file({"conv.weight": weight}, path)
    (row,) = report("inspect", path)["tensors"]
    assert row["pattern"] == "unstructured:0.75"
    per_tap = torch.zeros(8, 8, 2, 2)
    per_tap[:, ::4] = 1.0
    save_file({"conv.weight": per_tap}, path)
    (row,) = report("inspect", path)["tensors"]
    assert row["pattern"] == "1:4"


@pytest.mark.parametrize("pattern", ["unstructured:0.7", "2:4", "fanin:0.6", "block:4x4:0.5"])
def test_packed_convolutions_come_back_and_load(tmp_path: Path, pattern: str) -> None:
    path, small, back = (tmp_path / f"{name}.safetensors" for name in ("m", "packed", "back"))
    model = network()
    pruner = gs.Magnitude(pattern)
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    save_file(model.state_dict(), path)
    rows = report("pack", path, "-p", pattern, "-o", small)["tensors"]
    assert [row["packed"] for row in rows] == [True] * 3
    kinds = {row["name"]: row["pattern"].split(":")[0] for row in rows}
    # 6 and 10 channels are no multiple of 4: groups of four end inside a tap.
    crossing = "unstructured" if pattern == "2:4" else pattern.split(":")[0]
    assert kinds["a.weight"] == kinds["b.weight"] == crossing
    assert kinds["c.weight"] == pattern.split(":")[0]
    assert report("verify", small, "-p", pattern)["ok"]
    shapes = {row["name"]: row["shape"] for row in report("inspect", small)["tensors"]}
    gossamer("unpack", small, "-o", back)
    got = load_file(back)
    fresh = network()
    gs.load_into(fresh, small, layout="format")
    for name, want in model.state_dict().items():
        assert shapes[name] == list(want.shape)
        assert torch.equal(got[name], want), name
        loaded = fresh.get_parameter(name)
        assert isinstance(loaded, gs.SparseWeight)
        assert torch.equal(loaded.to_dense(), want), name


def test_a_file_of_python_is_unpacked_in_the_shape_of_the_module(tmp_path: Path) -> None:
    path, back = tmp_path / "m.safetensors", tmp_path / "back.safetensors"
    model = network()
    pruner = gs.Magnitude("unstructured:0.7")
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    want = {name: value.clone() for name, value in model.state_dict().items()}
    gs.save(gs.sparsify_(model, layout="format"), path)
    gossamer("unpack", path, "-o", back)
    for name, value in load_file(back).items():
        assert torch.equal(value, want[name]), name


def test_a_tap_that_breaks_the_pattern_is_not_packed(tmp_path: Path) -> None:
    path, out = tmp_path / "m.safetensors", tmp_path / "packed.safetensors"
    weight = torch.zeros(4, 6, 2, 2)
    weight[2, :3, 1, 0] = 1.0
    save_file({"conv.weight": weight}, path)
    run = gossamer("pack", path, "-p", "2:4", "-o", out, status=2)
    assert "batch 2, row 2, columns 0–3" in run.stderr
    assert not out.exists()
