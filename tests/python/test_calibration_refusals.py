# SPDX-License-Identifier: BSD-3-Clause
"""What calibration refuses, in a sentence that says what to do, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gossamer.prune import (
    Best,
    ByWanda,
    LeastSquares,
    OneShot,
    SparseGPT,
    Swap,
    Wanda,
    lamp,
    owl,
    recalibrate_batchnorm,
    save_statistics,
)
from prune_helpers import assert_same, data, net, snapshot


def refused(
    batches: Any, match: str, error: type[Exception] = ValueError, **options: Any
) -> BaseException:
    """The error, of a model that is as it was."""
    model, method = net(), Wanda("2:4")
    method.prepare(model)
    before = snapshot(model)
    with pytest.raises(error, match=match) as caught:
        method.calibrate(batches, **options)
    assert_same(model, before)
    return caught.value


# --- Batches --------------------------------------------------------------------------------------


def test_batches_that_are_no_tensors() -> None:
    arrays = [batch.numpy() for batch in data()]
    refused(arrays, r"'0.weight' is called with a ndarray: .*torch.as_tensor", TypeError)
    refused(["one text"], r"'0.weight' is called with a str: .*a tokenizer's output", TypeError)
    refused(np.zeros((24, 16)), r"calibrate: batches is a ndarray: .*pass \[batch\]", TypeError)


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (torch.ones(3, 16, dtype=torch.int64), r"\[3, 16\] torch.int64 on cpu, the model torch.fl"),
        ([torch.ones(3, 16).half()], r"is \[\[3, 16\] torch.float16 on cpu\], the model torch.fl"),
        ({"input": torch.ones(3, 5)}, r"is \{input: \[3, 5\] torch.float32 on cpu\}, the model"),
    ],
)
def test_the_first_pass_says_which_batch_fails(batch: Any, match: str) -> None:
    one = {"input": data()[0]} if isinstance(batch, dict) else data()[0]
    error = refused([one, batch], rf"the model fails with batch 1: .*{match}", RuntimeError)
    assert isinstance(error.__cause__, RuntimeError)
    assert str(error.__cause__) in str(error) or "\n" in str(error.__cause__)


def test_errors_of_other_kinds_stay_what_they_are() -> None:
    class OwnError(RuntimeError):
        pass

    def forward(model: nn.Module, batch: Any) -> Any:
        raise OwnError("mine")

    refused(data(), "^mine$", OwnError, forward=forward)


def test_names_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"config: 0 is no name: .*0.weight"):
        Wanda("2:4").prepare(net(), {0: "2:4"})  # type: ignore[dict-item]


@pytest.mark.parametrize("pattern", ["block:4x4:0.5", "vnm:4:2:8"])
def test_swaps_of_blocks_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"Swap: swaps keep unstructured, fanin and N:M .*leave"):
        OneShot(pattern, ByWanda(), Swap())
    method = OneShot("2:4", ByWanda(), Swap())
    with pytest.raises(ValueError, match=rf"'2.weight': Swap: .*'{pattern}' would be broken"):
        method.prepare(net(), {"2.weight": pattern})


# --- A model that is moved ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["half", "double", "meta"])
@pytest.mark.parametrize("at", [2, 6, 8])
@pytest.mark.parametrize("make", [Wanda, Best])
def test_a_model_that_its_forward_moves(way: str, at: int, make: Callable[[str], OneShot]) -> None:
    model, batches = net(), data()
    model.register_buffer("scale", torch.ones(3))
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))
    method = make("2:4")
    method.prepare(model)
    before = snapshot(model)
    passes = 0

    def forward(own: nn.Module, x: Tensor) -> Any:
        nonlocal passes
        passes += 1
        if passes == at:
            own.to("meta") if way == "meta" else getattr(own, way)()
        weight = own.state_dict()["0.bias"]
        return own(x.to(weight.device, weight.dtype))

    with pytest.raises(ValueError, match=r"the model was moved on the way: '\S+' was torch.float3"):
        method.calibrate(batches, forward=forward)
    assert passes >= at
    assert_same(model, before)
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.get_buffer("count").dtype == torch.int64
    method.calibrate(batches)


# --- NaN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_batchnorm_takes_no_nan(value: float) -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    model[1].running_mean += 3
    batches = data()
    batches[2][1, 1] = value
    before = snapshot(model)
    match = r"recalibrate_batchnorm: '1': its inputs hold NaN or infinity in batch 2"
    with pytest.raises(ValueError, match=match):
        recalibrate_batchnorm(model, batches)
    assert_same(model, before)
    assert [layer.momentum for layer in (model[1], model[3])] == [0.1, 0.1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_distributions_take_no_nan(value: float) -> None:
    model, batches = net(), data()
    batches[1][0, 3] = value
    with pytest.raises(ValueError, match=r"owl: '0.weight': its inputs hold NaN .* in batch 1"):
        owl(model, "unstructured:0.5", batches)
    assert all(not module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        model[2].weight[1, 1] = value
    with pytest.raises(ValueError, match=r"owl: '2.weight' holds NaN or infinity"):
        owl(model, "unstructured:0.5", data())
    with pytest.raises(ValueError, match=r"lamp: '2.weight' holds NaN or infinity"):
        lamp(model, "unstructured:0.5")
    assert lamp(model, "unstructured:0.5", {"0.weight": {}})


def test_statistics_take_no_nan(tmp_path: Any) -> None:
    batches = data()
    batches[1][0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"'0.weight': its inputs hold NaN or infinity"):
        save_statistics(net(), batches, tmp_path / "stats")


# --- Memory formats -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Wanda, SparseGPT, Best, lambda p: OneShot(p, LeastSquares())])
def test_convolutions_stay_channels_last(make: Callable[[str], OneShot], tmp_path: Any) -> None:
    def model(memory_format: torch.memory_format) -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(32, 4)).to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]

    torch.manual_seed(1)
    batches = [torch.randn(8, 8, 6, 6) for _ in range(2)]
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        own = model(memory_format)
        for _ in range(2):  # The second time from the journal.
            own = model(memory_format)
            method = make("2:4")
            if method.parts and isinstance(method.parts[0], LeastSquares):
                method.parts = (ByWanda(), *method.parts)
            method.prepare(own)
            method.calibrate(batches, resume=tmp_path / str(memory_format))
            method.squash_mask()
            for index in (0, 2):
                weight = own[index].weight
                assert weight.is_contiguous(memory_format=memory_format)
                assert not weight.is_contiguous() or memory_format == torch.contiguous_format
        found.append(own.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)
