# SPDX-License-Identifier: BSD-3-Clause
"""Which weights a sparsifier takes, and what patterns and scopes keep of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gossamer.prune import (
    Magnitude,
    Random,
    Sparsifier,
    Taylor,
    attach_masks,
    density,
    sparsity_report,
)
from prune_helpers import Stripes, conv_net, net

# --- Patterns and scopes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "zeros"),
    [
        ("unstructured:0.9", 461),  # round(0.9 · 512), halves up
        ("2:4", 256),
        ("1:8", 448),
        ("block:4x4:0.5", 256),
        ("fanin:0.75", 384),
        ("vnm:8:2:8", 384),
    ],
)
@pytest.mark.parametrize("method", [Magnitude, Random])
def test_each_pattern_has_exact_counts(method: type[Sparsifier], pattern: str, zeros: int) -> None:
    model = nn.Linear(16, 32)
    pruner = method(pattern)
    pruner.prepare(model)
    pruner.step()
    assert int((~pruner.mask(pruner.groups[0])).sum()) == zeros
    pruner.squash_mask()
    assert torch.ops.gossamer.find_violation(model.weight.detach(), pattern) == ""


def test_scopes() -> None:
    def zeros_by_row(scope: str) -> list[Tensor]:
        model = net()
        with torch.no_grad():
            model[0].weight.copy_(torch.arange(1.0, 513.0).view(32, 16))
            model[2].weight.copy_(torch.arange(513.0, 769.0).view(8, 32))
        pruner = Magnitude("unstructured:0.5", scope=scope)
        pruner.prepare(model)
        pruner.step()
        return [(~pruner.mask(group)).sum(1) for group in pruner.groups]

    first, second = zeros_by_row("row")
    assert first.eq(8).all()
    assert second.eq(16).all()
    first, second = zeros_by_row("tensor")
    assert first.tolist() == [16] * 16 + [0] * 16
    assert second.tolist() == [32] * 4 + [0] * 4
    first, second = zeros_by_row("global")  # 768 weights, the smallest 384 are all in the first
    assert first.tolist() == [16] * 24 + [0] * 8
    assert second.eq(0).all()


@pytest.mark.parametrize("pattern", ["unstructured:0.75", "block:1x2:0.75"])
def test_blocks_of_columns_compete_in_themselves(pattern: str) -> None:
    layer = nn.Linear(20, 6)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.1, 3, 20))
    pruner = Magnitude(pattern, scope="columns:8")
    pruner.prepare(layer)
    pruner.step()
    mask, weight = pruner.mask(pruner.groups[0]), pruner.dense_weight(pruner.groups[0])
    for begin in (0, 8, 16):
        own = slice(begin, min(begin + 8, 20))
        part = nn.Linear(own.stop - begin, 6)
        with torch.no_grad():
            part.weight.copy_(weight[:, own])
        alone = Magnitude(pattern)
        alone.prepare(part)
        alone.step()
        assert torch.equal(mask[:, own], alone.mask(alone.groups[0]))
    # Groups of inputs compete in themselves whatever the scope.
    found = []
    for scope in ("tensor", "columns:6"):
        other = Magnitude("2:4", scope=scope)
        attached = nn.Linear(20, 6)
        attached.load_state_dict({"weight": weight.detach(), "bias": layer.bias.detach()})
        other.prepare(attached)
        other.step()
        found.append(other.mask(other.groups[0]))
    assert torch.equal(*found)
    for scope in ("columns", "columns:0", "columns:x"):
        with pytest.raises(ValueError, match=f"scope '{scope}': 'columns:N' with N from 1"):
            Magnitude(pattern, scope=scope)
    whole = Magnitude(Stripes(), scope="columns:8")
    whole.prepare(nn.Linear(20, 6))
    with pytest.raises(ValueError, match="'weight': scope 'columns:8': pattern stripes is an obj"):
        whole.step()


def test_configs_of_torch_pruning() -> None:
    """Entries name a module, its name, or the tensor behind a dot; what is given twice agrees."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
    entries = [
        {"tensor_fqn": ".0.weight", "module": model[0], "module_fqn": "0", "tensor_name": "weight"},
        {"module": model[1][0], "pattern": "1:4"},
    ]
    pruner = Magnitude("2:4")
    pruner.prepare(model, entries)
    assert [(g["tensor_fqn"], g["pattern"]) for g in pruner.groups] == [
        ("0.weight", "2:4"),
        ("1.0.weight", "1:4"),
    ]
    other = Magnitude("2:4")
    fresh = nn.Sequential(nn.Linear(8, 8))
    other.prepare(fresh, [{"module_fqn": "0", "tensor_name": "weight"}])
    assert other.groups[0]["module"] is fresh[0]
    for entry, match in (
        ({"tensor_fqn": "0.weight", "module": fresh}, "'0.weight' is given with the module"),
        ({"tensor_fqn": "0.weight", "module_fqn": "1"}, "given with the module_fqn '1'"),
        ({"module": nn.Linear(8, 8)}, "Linear is no module with parameters of this model"),
        ({"module_fqn": "o"}, "no parameter 'o.weight'"),
    ):
        with pytest.raises(ValueError, match=match):
            Magnitude("2:4").prepare(nn.Sequential(nn.Linear(8, 8)), [entry])


def test_taylor_keeps_what_the_loss_would_miss_most() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    pruner = Taylor("unstructured:0.5")
    pruner.prepare(model)
    with pytest.raises(RuntimeError, match=r"'0\.weight' has no gradient; call loss.backward"):
        pruner.step()
    for _ in range(3):
        model(torch.randn(16, 12)).square().sum().backward()
    wanted = []
    for group in pruner.groups:
        weight = pruner.dense_weight(group)
        scores = (weight * weight.grad).abs().detach()
        wanted.append(
            scores >= scores.flatten().sort(descending=True).values[scores.numel() // 2 - 1]
        )
    pruner.step()
    for group, mask in zip(pruner.groups, wanted, strict=True):
        assert torch.equal(pruner.mask(group), mask)


def test_global_scope_competes_among_equal_patterns_only() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    with torch.no_grad():
        for scale, layer in zip((1.0, 100.0, 1.0), model, strict=True):
            layer.weight.copy_(scale * (1 + torch.rand(8, 8)))
    pruner = Magnitude("unstructured:0.5", scope="global")
    pruner.prepare(model, {"2": {"pattern": "unstructured:0.25"}, "*": {}})
    pruner.step()
    report = sparsity_report(model)
    assert report == {"0.weight": 1.0, "1.weight": 0.0, "2.weight": 0.25}


def test_one_level_of_patterns_per_layer() -> None:
    model = conv_net()
    pruner = Magnitude("2:4")
    pruner.prepare(
        model,
        [
            {"tensor_fqn": "0.weight", "pattern": "unstructured:0.5", "scope": "row"},
            {"tensor_fqn": "3.weight"},
        ],
    )
    pruner.step()
    conv, linear = (pruner.mask(group) for group in pruner.groups)
    assert conv.flatten(1).sum(1).eq(27).all()
    assert linear.view(5, 8, 4).sum(-1).eq(2).all()


def test_patterns_of_ones_own() -> None:
    model = conv_net()
    pruner = Magnitude(Stripes())
    pruner.prepare(model)
    pruner.step()
    conv, linear = (pruner.mask(group) for group in pruner.groups)
    assert conv[:, ::2].all()  # 6 channels: stripes of the last matrix dimension are channels
    assert not conv[:, 1::2].any()
    assert linear[:, ::2].all()
    assert not linear[:, 1::2].any()
    assert pruner.state_dict()["groups"][0]["pattern"] == "stripes"
    other = Magnitude(Stripes())
    other.load_state_dict(pruner.state_dict())
    other.prepare(conv_net())
    assert isinstance(other.groups[0]["pattern"], Stripes)


def test_a_pattern_that_selects_no_mask_is_refused() -> None:
    class Wrong:
        def select(self, scores: Tensor) -> Tensor:
            return scores

    pruner = Magnitude(Wrong())
    pruner.prepare(net())
    with pytest.raises(ValueError, match=r"torch.float32 \[32, 16\] for '0.weight'"):
        pruner.step()


# --- Selecting weights ----------------------------------------------------------------------------


def chosen(model: nn.Module, config: Any = None) -> dict[str, str]:
    pruner = Magnitude("2:4")
    pruner.prepare(model, config)
    return {group["tensor_fqn"]: group["pattern"] for group in pruner.groups}


def test_default_takes_linear_and_conv_weights_and_subclasses() -> None:
    class Narrow(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "linear": Narrow(8, 8),
            "conv": nn.Conv2d(4, 4, 3),
            "embedding": nn.Embedding(8, 8),
            "norm": nn.LayerNorm(8),
            "normed": spectral_norm(nn.Linear(8, 8)),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    assert list(chosen(model)) == ["linear.weight", "conv.weight", "attention.out_proj.weight"]


def test_a_bare_module_is_a_model() -> None:
    assert list(chosen(nn.Linear(8, 8))) == ["weight"]


def test_config_by_glob() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(8, 8), nn.Conv2d(4, 4, 1), nn.Linear(8, 8))
    config = {"3": None, "2.weight": "1:4", "*": {"pattern": "unstructured:0.5"}}
    assert chosen(model, config) == {"2.weight": "1:4", "0.weight": "unstructured:0.5"}
    # No layer weight matches: then it means what it says.
    assert chosen(copy.deepcopy(nn.Sequential(nn.Embedding(8, 8))), {"*": "2:4"}) == {
        "0.weight": "2:4"
    }


def test_any_parameter_by_name() -> None:
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(8, 2), "embedding": nn.Embedding(10, 8)}
    )
    pruner = Magnitude("2:4")
    pruner.prepare(
        model,
        [{"tensor_fqn": "attention.in_proj_weight"}, {"tensor_fqn": "embedding.weight"}],
    )
    pruner.step()
    for group in pruner.groups:
        assert pruner.mask(group).view(-1, 2, 4).sum(-1).eq(2).all()
    x = model["embedding"](torch.arange(10)).unsqueeze(1)
    y, _ = model["attention"](x, x, x)
    y.sum().backward()
    for group in pruner.groups:
        gradient = pruner.dense_weight(group).grad
        assert gradient is not None
        assert gradient[~pruner.mask(group)].eq(0).all()
        assert gradient[pruner.mask(group)].ne(0).any()
    names = [name for name, _ in nn.MultiheadAttention(8, 2).named_parameters()]
    pruner.squash_mask()
    assert [name for name, _ in model["attention"].named_parameters()] == names
    assert model["attention"].in_proj_weight.view(24, 2, 4).count_nonzero(-1).eq(2).all()


def test_a_shared_parameter_gets_one_mask_everywhere() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    shared = model[0].weight
    pruner = Random("2:4")
    pruner.prepare(model)
    pruner.step()
    assert len(pruner.groups) == 1
    assert torch.equal(model[0].weight, model[2].weight)
    assert density(model) == 0.5
    copied, twin = copy.deepcopy((model, pruner))
    twin.step()
    assert torch.equal(copied[0].weight, copied[2].weight)
    assert not torch.equal(copied[0].weight, model[0].weight)
    fresh = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    fresh[2].weight = fresh[0].weight
    attach_masks(fresh, model.state_dict()).load_state_dict(model.state_dict())
    assert torch.equal(fresh[2].weight, model[2].weight)
    pruner.squash_mask()
    assert model[0].weight is shared
    assert model[2].weight is shared
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_tied_embedding_is_pruned_only_by_name() -> None:
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False))
    model[2].weight = model[0].weight
    assert list(chosen(copy.deepcopy(model))) == ["1.weight"]
    pruner = Magnitude("2:4")
    pruner.prepare(model, [{"tensor_fqn": "2.weight"}])
    pruner.step()
    assert torch.equal(model[0].weight, model[2].weight)
    assert int(model[0].weight.count_nonzero()) == 48
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"'1.weight' is the same parameter as '0.weight'"):
        Magnitude("2:4").prepare(tied, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "1.weight"}])
