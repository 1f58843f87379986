# SPDX-License-Identifier: BSD-3-Clause
"""The contract of sparsifiers: prepare, step, squash_mask, configs, errors."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from gossamer.prune import (
    GradualMagnitude,
    Magnitude,
    Mask,
    Random,
    Sparsifier,
    attach_masks,
    density,
    masked_parameters,
    sparsity_report,
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What a failed call must not change: classes, names and their order, values, objects."""
    return {
        "classes": [type(module).__name__ for module in model.modules()],
        "parameters": [(name, id(p)) for name, p in model.named_parameters()],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert after["classes"] == before["classes"]
    assert after["parameters"] == before["parameters"]
    assert list(after["state"]) == list(before["state"])
    for name, value in before["state"].items():
        assert torch.equal(after["state"][name], value), name


class ReadOnce(Sparsifier):
    """Records what score() is given."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.seen: list[Tensor] = []

    def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        self.seen.append(weight)
        return weight.abs()


# --- prepare, step, squash ------------------------------------------------------------------------


def test_prepare_changes_no_output_and_step_masks_exactly() -> None:
    model, x = net(), torch.randn(5, 16)
    want = model(x)
    pruner = Magnitude("unstructured:0.75")
    assert pruner.prepare(model) is model
    assert torch.equal(model(x), want)
    assert [group["tensor_fqn"] for group in pruner.groups] == ["0.weight", "2.weight"]
    dense = model[0].parametrizations.weight.original.detach()
    pruner.step()
    order = dense.abs().flatten().sort(descending=True).indices
    kept = torch.zeros(dense.numel(), dtype=torch.bool)
    kept[order[: dense.numel() // 4]] = True
    assert torch.equal(model[0].weight, dense * kept.view_as(dense))
    assert int(model[2].weight.count_nonzero()) == 8 * 32 // 4


def test_squash_leaves_the_same_parameters_in_the_same_order() -> None:
    model = net()
    parameters = list(model.parameters())
    names = list(model.state_dict())
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    masked = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    pruner.squash_mask()
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    assert torch.equal(model[0].weight, masked[0])
    assert torch.equal(model[2].weight, masked[1])
    assert type(model[0].weight) is nn.Parameter
    assert model[0].weight.requires_grad
    assert pruner.groups == []
    assert pruner.model is None
    assert pruner.step_count == 1


def test_squash_keeps_requires_grad_off() -> None:
    model = nn.Linear(8, 8)
    model.weight.requires_grad_(False)
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    assert not model.weight.requires_grad
    assert int(model.weight.count_nonzero()) == 32


def test_an_optimizer_made_before_prepare_goes_on_after_squash() -> None:
    model, x = net(), torch.randn(32, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
    pruner.squash_mask()
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_params_to_keep() -> None:
    model = net()
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'sparsity_level'.*do not exist.*'pattern'"):
        pruner.squash_mask(params_to_keep=["sparsity_level"])
    with pytest.raises(ValueError, match=r"'1'.*have no masks.*'0', '2'"):
        pruner.squash_mask(params_to_keep_per_layer={"1": ["scope"]})
    assert_same(model, before)
    pruner.squash_mask(params_to_keep=("pattern",), params_to_keep_per_layer={"2": ("scope",)})
    assert model[0].sparse_params == {"pattern": "2:4"}
    assert model[2].sparse_params == {"pattern": "2:4", "scope": "tensor"}


def test_a_squashed_sparsifier_prepares_again() -> None:
    pruner = Magnitude("2:4")
    for model in (net(), net()):
        pruner.prepare(model)
        pruner.step()
        pruner.squash_mask()
        assert density(model) == 0.5


def test_calls_in_the_wrong_order_say_so() -> None:
    pruner = Magnitude("2:4")
    with pytest.raises(RuntimeError, match=r"step: there are no masks; call prepare"):
        pruner.step()
    with pytest.raises(RuntimeError, match=r"squash_mask: there are no masks"):
        pruner.squash_mask()
    pruner.prepare(net())
    with pytest.raises(RuntimeError, match="has a model already"):
        pruner.prepare(net())


def test_enable_mask_update_false_counts_but_changes_nothing() -> None:
    model = net()
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.enable_mask_update = False
    pruner.step()
    assert density(model) == 1.0
    assert pruner.step_count == 1
    pruner.enable_mask_update = True
    pruner.step()
    assert density(model) == 0.5
    assert pruner.step_count == 2


def test_repr_names_weights_patterns_and_zeros() -> None:
    pruner = Magnitude("2:4")
    pruner.prepare(net(), {"0": "unstructured:0.75", "2": "2:4"})
    pruner.step()
    assert repr(pruner).splitlines() == [
        "Magnitude(pattern='2:4', scope='tensor')",
        "  0.weight: pattern='unstructured:0.75', 75.00% zeros",
        "  2.weight: pattern='2:4', 50.00% zeros",
    ]


# --- The mask -------------------------------------------------------------------------------------


def test_dropped_weights_regrow() -> None:
    model = nn.Linear(16, 8)
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    (group,) = pruner.groups
    dropped = ~pruner.mask(group)
    with torch.no_grad():
        pruner.dense_weight(group)[dropped] = 100.0
    pruner.step()
    assert torch.equal(pruner.mask(group), dropped)
    assert model.weight[dropped].eq(100.0).all()


def test_scores_see_the_dense_parameter_and_its_gradient() -> None:
    model = nn.Linear(16, 8)
    pruner = ReadOnce("2:4")
    pruner.prepare(model)
    model(torch.ones(3, 16)).sum().backward()
    pruner.step()
    pruner.step()
    for seen in pruner.seen:
        assert seen is model.parametrizations.weight.original
        assert seen.grad is not None
        assert seen.count_nonzero() == seen.numel()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_leaks_from_dropped_positions(value: float) -> None:
    model = nn.Linear(8, 4)
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    (group,) = pruner.groups
    dropped = ~pruner.mask(group)
    with torch.no_grad():
        pruner.dense_weight(group)[dropped] = value
    y = model(torch.randn(3, 8))
    y.sum().backward()
    gradient = pruner.dense_weight(group).grad
    assert y.isfinite().all()
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient[dropped].eq(0).all()
    assert gradient[~dropped].ne(0).all()
    pruner.squash_mask()
    assert model.weight[dropped].eq(0).all()


def test_assigning_to_a_masked_weight_stores_it() -> None:
    model = nn.Linear(8, 4)
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    values = torch.randn(4, 8)
    with torch.no_grad():
        model.weight = values
    assert torch.equal(pruner.dense_weight(pruner.groups[0]), values)


def test_a_mask_is_bool() -> None:
    with pytest.raises(ValueError, match=r"torch.float32: torch.bool is accepted"):
        Mask(torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_changes_keep_the_mask(dtype: torch.dtype) -> None:
    model = net()
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    before = [pruner.mask(group).clone() for group in pruner.groups]
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    for group, mask in zip(pruner.groups, before, strict=True):
        assert pruner.mask(group).dtype == torch.bool
        assert torch.equal(pruner.mask(group), mask)
    pruner.step()
    assert density(model) == 0.5


def test_momentum_of_dropped_weights_can_be_kept_at_zero() -> None:
    model, x = net(), torch.randn(32, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = Magnitude("2:4")
    pruner.prepare(model)

    def train() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    train()
    pruner.step()
    handle = pruner.attach_optimizer(optimizer)
    train()
    for group in pruner.groups:
        own = optimizer.state[pruner.dense_weight(group)]
        for name in ("exp_avg", "exp_avg_sq"):
            assert own[name][~pruner.mask(group)].eq(0).all()
            assert own[name][pruner.mask(group)].ne(0).any()
        assert own["step"] == 2
    frozen = [pruner.dense_weight(group).detach().clone() for group in pruner.groups]
    train()
    for group, before in zip(pruner.groups, frozen, strict=True):
        dropped = ~pruner.mask(group)
        assert torch.equal(pruner.dense_weight(group)[dropped], before[dropped])
    handle.remove()
    assert not optimizer._optimizer_step_post_hooks


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


@dataclass
class Stripes:
    """Keeps every other input. A dataclass: it has no hash."""

    def __str__(self) -> str:
        return "stripes"

    def select(self, scores: Tensor) -> Tensor:
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, ::2] = True
        return mask


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
    with pytest.raises(ValueError, match=r"an object has no sparsity that could grow"):
        GradualMagnitude(Stripes(), 0, 5)  # type: ignore[arg-type]


# --- Subclasses -----------------------------------------------------------------------------------


class FirstInputs(Sparsifier):
    """A score is enough."""

    def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        return -torch.arange(weight.shape[1], dtype=torch.float32).expand(weight.shape)


def test_a_subclass_with_a_score_alone_is_complete() -> None:
    model = net()
    pruner = FirstInputs("fanin:0.75")
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    assert model[0].weight[:, :4].ne(0).all()
    assert model[0].weight[:, 4:].eq(0).all()
    assert model[2].weight[:, 8:].eq(0).all()


def test_a_subclass_without_a_score_says_what_to_define() -> None:
    pruner = Sparsifier("2:4")
    pruner.prepare(net())
    with pytest.raises(NotImplementedError, match=r"Sparsifier defines no score\(weight, group\)"):
        pruner.step()


def test_scores_of_another_shape_are_refused() -> None:
    class RowSums(Sparsifier):
        def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
            return weight.sum(1)

    pruner = RowSums("2:4")
    pruner.prepare(net())
    with pytest.raises(ValueError, match=r"'0.weight' are \[32\]: one score for each element"):
        pruner.step()


def test_a_subclass_may_update_masks_one_by_one_or_all_at_once() -> None:
    class Upper(Sparsifier):
        def update_mask(self, module: nn.Module, tensor_name: str, **group: Any) -> None:
            # As torch.ao.pruning's sparsifiers do it.
            mask = module.parametrizations[tensor_name][0].mask
            mask.data = torch.ones_like(mask).triu()

    class LastLayerOnly(Sparsifier):
        def _step(self) -> None:
            for group in self.groups[:-1]:
                self.mask(group).fill_(True)
            self.mask(self.groups[-1]).fill_(False)

    model = net()
    pruner: Sparsifier = Upper("2:4")
    pruner.prepare(model)
    pruner.step()
    assert torch.equal(model[0].weight, model[0].parametrizations.weight.original.triu())
    pruner.squash_mask()
    model = net()
    pruner = LastLayerOnly("2:4")
    pruner.prepare(model)
    pruner.step()
    assert sparsity_report(model) == {"0.weight": 0.0, "2.weight": 1.0}


def test_update_mask_of_one_weight() -> None:
    model = net()
    pruner = Magnitude("2:4")
    pruner.prepare(model)
    pruner.update_mask(**pruner.groups[1])
    assert sparsity_report(model) == {"0.weight": 0.0, "2.weight": 0.5}
    assert pruner.step_count == 0


def test_hyperparameters_of_a_subclass_can_be_set_per_weight() -> None:
    class Power(Sparsifier):
        def __init__(self, pattern: str, power: float = 1.0) -> None:
            super().__init__(pattern, power=power)

        def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
            return weight.abs() ** group["power"]

    model = net()
    smallest = torch.ops.gossamer.select_masks([-model[0].weight.detach().abs()], "2:4", "row")[0]
    pruner = Power("2:4")
    pruner.prepare(model, {"0": {"power": -1.0}, "2": {}})
    pruner.step()
    assert torch.equal(pruner.mask(pruner.groups[0]), smallest)
    assert [group["power"] for group in pruner.groups] == [-1.0, 1.0]


# --- Random ---------------------------------------------------------------------------------------


def test_random_is_a_function_of_seed_name_and_step() -> None:
    def masks(seed: int, steps: int, noise: int) -> list[Tensor]:
        torch.manual_seed(noise)
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        pruner = Random("unstructured:0.5", seed=seed)
        pruner.prepare(model)
        state = torch.get_rng_state()
        for _ in range(steps):
            pruner.step()
        assert torch.equal(torch.get_rng_state(), state)
        return [pruner.mask(group) for group in pruner.groups]

    first = masks(seed=3, steps=1, noise=1)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(3, 1, 2), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], masks(4, 1, 1)[0])
    assert not torch.equal(first[0], masks(3, 2, 1)[0])


# --- Masks of a model -----------------------------------------------------------------------------


def test_masked_parameters_and_report() -> None:
    model = conv_net()
    assert density(model) == 1.0
    assert list(masked_parameters(model)) == []
    pruner = Magnitude("unstructured:0.5")
    pruner.prepare(model, {"0": {}})
    pruner.step()
    ((name, module, tensor_name, mask),) = masked_parameters(model)
    assert (name, module, tensor_name) == ("0.weight", model[0], "weight")
    assert mask.mask is pruner.mask(pruner.groups[0])
    assert sparsity_report(model) == {"0.weight": 0.5, "3.weight": 0.0}
    assert density(model) == (432 / 2 + 160) / (432 + 160)
    assert density(nn.ReLU()) == 1.0
