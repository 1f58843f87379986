# SPDX-License-Identifier: BSD-3-Clause
"""What sparsifiers refuse; a refusal leaves everything as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from gossamer.prune import (
    GradualMagnitude,
    Magnitude,
    Random,
    Wanda,
)
from prune_helpers import Stripes, assert_same, net, snapshot

# --- Refusals leave everything as it was ----------------------------------------------------------


def refused(model: nn.Module, config: Any, match: str, error: type[Exception] = ValueError) -> None:
    before = snapshot(model)
    pruner = Magnitude("2:4")
    with pytest.raises(error, match=match):
        pruner.prepare(model, config)
    assert_same(model, before)
    assert pruner.groups == []
    assert pruner.model is None
    pruner.prepare(model, [{"tensor_fqn": "0.weight"}])


FIRST = {"tensor_fqn": "0.weight"}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ([FIRST, {"tensor_fqn": "2.wieght"}], r"no parameter '2.wieght'.*'2.weight'"),
        ([FIRST, {"tensor_fqn": "1.weight"}], r"no parameter '1.weight'; the nearest names are"),
        ([FIRST, {"pattern": "2:4"}], r"names no parameter: a dict with 'tensor_fqn'"),
        ([FIRST, "2.weight"], r"names no parameter"),
        ([FIRST, FIRST], r"'0.weight' is named twice"),
        ([FIRST, {"tensor_fqn": "2.bias"}], r"'2.bias' has shape \[8\].*two or more dim"),
        ([FIRST, {"tensor_fqn": "2.weight", "pattern": "2:5"}], r"'2.weight': pattern '2:5'"),
        ([FIRST, {"tensor_fqn": "2.weight", "pattern": 24}], r"pattern 24: a text such as"),
        ([FIRST, {"tensor_fqn": "2.weight", "scope": "layer"}], r"scope 'layer': 'row'"),
        ([FIRST, {"tensor_fqn": "2.weight", "patern": "2:4"}], r"\['patern'\]; Magnitude takes"),
        ({"0": "2:4", "layers.*": "2:4"}, r"'layers.\*' matches no parameter"),
        ({"0": None}, "nothing to prune"),
        ([], "nothing to prune"),
    ],
)
def test_bad_configs(config: Any, match: str) -> None:
    refused(net(), config, match)


def test_a_config_of_another_type() -> None:
    refused(net(), "2:4", "config is '2:4': None, a list of dicts", TypeError)


def test_parameters_that_can_take_no_mask() -> None:
    refused(
        nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8)),
        [FIRST, {"tensor_fqn": "1.weight_ih_l0"}],
        r"'1.weight_ih_l0' belongs to nn.LSTM, which reads its weights past any mask",
    )
    refused(
        nn.Sequential(nn.Linear(8, 8), weight_norm(nn.Linear(8, 8))),
        [FIRST, {"tensor_fqn": "1.weight"}],
        r"'1.weight' is parametrized already \(_WeightNorm\)",
    )
    lazy = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"'1.weight' has no shape yet; run the model once"):
        Magnitude("2:4").prepare(lazy)
    assert type(lazy[0]) is nn.Linear


def test_a_failure_while_masks_are_attached_undoes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = snapshot(model)
    register, calls = parametrize.register_parametrization, []

    def fail_at_the_second(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        calls.append(module)
        if len(calls) == 2:
            raise MemoryError
        return register(module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(parametrize, "register_parametrization", fail_at_the_second)
        with pytest.raises(MemoryError):
            Magnitude("2:4").prepare(model)
        assert len(calls) == 2
    assert_same(model, before)


def test_a_failed_step_changes_no_mask_and_counts_not() -> None:
    model = net()
    pruner = Random("2:4")
    pruner.prepare(model)
    pruner.step()
    before = [pruner.mask(group).clone() for group in pruner.groups]
    values = model[2].parametrizations.weight.original.detach().clone()
    broken = Magnitude("2:4")
    broken.prepare(model)
    with torch.no_grad():
        model[2].parametrizations.weight.original[3, 7] = float("nan")
    with pytest.raises(ValueError, match=r"'2.weight': the score at batch 0, row 3, column 7 is"):
        broken.step()
    assert broken.step_count == 1
    for group, mask in zip(broken.groups, before, strict=True):
        assert torch.equal(broken.mask(group), mask)
    with torch.no_grad():
        model[2].parametrizations.weight.original.copy_(values)
    broken.step()
    assert broken.step_count == 2


@pytest.mark.parametrize(
    ("pattern", "scope", "fits"),
    [
        ("block:32x32:0.5", "tensor", False),  # One block, and half of it rounds to all.
        ("block:16x16:0.5", "tensor", True),
        ("block:16x16:0.7", "row", False),
        ("unstructured:0.96", "tensor", True),
        ("unstructured:0.97", "row", False),
        ("unstructured:0.97", "columns:2", True),
        ("unstructured:0.97", "columns:1", True),
        ("unstructured:0.99", "columns:1", False),
        ("fanin:0.97", "tensor", False),
        ("fanin:0.95", "tensor", True),
        ("unstructured:1.0", "tensor", True),  # What asks for nothing gets it.
        ("block:64x64:0.5", "global", True),  # Others may have won everywhere.
        ("1:16", "row", True),
    ],
)
def test_patterns_that_would_switch_a_layer_off(pattern: str, scope: str, *, fits: bool) -> None:
    """A weight of 32 rows and 16 columns; the second layer, 8 rows of 32, stays dense."""
    model = net()
    before = snapshot(model)
    if not fits:
        with pytest.raises(ValueError, match=rf"'0.weight': pattern {pattern} keeps nothing"):
            Magnitude(pattern, scope=scope).prepare(model, {"0": {}})
        assert_same(model, before)
        return
    pruner = Magnitude(pattern, scope=scope)
    pruner.prepare(model, {"0": {}})
    pruner.step()
    asks_for_some = pattern != "unstructured:1.0" and scope != "global"
    assert bool(pruner.mask(pruner.groups[0]).any()) == asks_for_some


def test_weights_that_torch_prune_computes() -> None:
    def pruned() -> nn.Module:
        model = net()
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
        return model

    match = r"'0.weight' is pruned by torch.nn.utils.prune; call gossamer.prune.from_torch_prune"
    with pytest.raises(ValueError, match=match):
        Magnitude("2:4").prepare(pruned(), [FIRST])
    match = match.replace("0.weight", "0.weight_orig")
    with pytest.raises(ValueError, match=match):
        Magnitude("2:4").prepare(pruned(), [{"tensor_fqn": "0.weight_orig"}])
    with pytest.raises(ValueError, match=r"'0\*' matches no parameter|nothing to prune"):
        Magnitude("2:4").prepare(pruned(), {"0*": "2:4"})
    model = pruned()
    method = Wanda("2:4")
    method.prepare(model)
    report = method.calibrate([torch.randn(32, 16)])
    assert [layer.fqn for layer in report.layers] == ["2.weight"]
    assert "from_torch_prune" in report.left_dense["0.weight"]


def test_bad_hyperparameters_of_the_constructors() -> None:
    with pytest.raises(ValueError, match="'defaults': pattern 'nonsense'"):
        Magnitude("nonsense")
    with pytest.raises(ValueError, match="scope 'everywhere'"):
        Magnitude("2:4", scope="everywhere")
    with pytest.raises(ValueError, match=r"seed=0.5: an integer"):
        Random("2:4", seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ends at step 5, which is not after its begin, 5"):
        GradualMagnitude("2:4", begin_step=5, end_step=5)
    with pytest.raises(ValueError, match=r"every=0: a begin_step from 0 and an every from 1"):
        GradualMagnitude("2:4", 0, 5, every=0)
    with pytest.raises(ValueError, match=r"end_step=2.5: an integer"):
        GradualMagnitude("2:4", 0, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at most the pattern's own sparsity, 0.5"):
        GradualMagnitude("2:4", 0, 5, initial_sparsity=0.6)
    with pytest.raises(ValueError, match=r"this object has no `sparsity` that could grow"):
        GradualMagnitude(Stripes(), 0, 5)
