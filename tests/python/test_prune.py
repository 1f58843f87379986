# SPDX-License-Identifier: BSD-3-Clause
"""The contract of sparsifiers: prepare, step, squash_mask, the mask between them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gossamer.prune import (
    Magnitude,
    Mask,
    density,
    masked_parameters,
    sparsity_report,
)
from prune_helpers import ReadOnce, assert_same, conv_net, net, snapshot

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
