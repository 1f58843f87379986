# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions are planned in the memory format of their model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer import _packing
from gossamer.weight import SparseWeight


def pruned_model(channels_last: bool) -> nn.Sequential:
    """A 3×3 filter, whose memory says which format it is in, and a 1×1 filter, whose does not."""
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1))
    with torch.no_grad():
        for layer in layers:
            layer.weight *= torch.rand_like(layer.weight) < 0.2
    return layers.to(memory_format=torch.channels_last) if channels_last else layers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each plan was made for channels-last images."""
    formats: list[bool] = []
    original = torch.ops.gossamer.plan_conv2d

    def plan_conv2d(*arguments: object) -> object:
        assert isinstance(arguments[5], bool)
        formats.append(arguments[5])
        return original(*arguments)

    monkeypatch.setattr(torch.ops.gossamer, "plan_conv2d", plan_conv2d)
    return formats


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_tap_is_planned_as_its_model(channels_last: bool, asked: list[bool]) -> None:
    gs.sparsify_(pruned_model(channels_last), plan="model")
    assert asked == [channels_last] * 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_file_is_planned_as_the_model_it_is_loaded_into(
    channels_last: bool, asked: list[bool], tmp_path: Path
) -> None:
    packed = gs.sparsify_(pruned_model(False), layout="format")
    assert all(isinstance(layer.weight, SparseWeight) for layer in packed)
    gs.save(packed, tmp_path / "model.safetensors")
    model = pruned_model(channels_last)
    gs.load_into(model, tmp_path / "model.safetensors", plan="model")
    assert asked == [channels_last] * 2
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(model(x), packed(x))


def test_weights_that_say_nothing_are_passed_over() -> None:
    packed = gs.sparsify_(pruned_model(True), layout="format")
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyLinear(4), *packed, nn.Embedding(4, 4))
    assert not _packing.is_channels_last(lazy)
    assert _packing.is_channels_last(nn.Sequential(lazy, pruned_model(True)))


def test_a_dense_copy_keeps_its_memory_format() -> None:
    filters = torch.randn(4, 3, 2, 2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        values = filters.contiguous(memory_format=memory_format)
        copied = _packing._dense_copy(values)
        assert copied.data_ptr() != values.data_ptr()
        assert copied.is_contiguous(memory_format=memory_format)
        assert torch.equal(copied, filters)
    assert _packing._dense_copy(torch.randn(3, 5).mT).is_contiguous()
