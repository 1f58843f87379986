# SPDX-License-Identifier: BSD-3-Clause
"""Parts that take what the model has already: masks of before, gradients of a loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import (
    ByMovement,
    ByTaylor,
    Existing,
    LeastSquares,
    ObsSweep,
    OneShot,
    Part,
    Score,
    Swap,
    attach_masks,
)
from prune_helpers import assert_same, conv_net, net, snapshot


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.mask.clone() for name, _, _, m in gs.prune.masked_parameters(model)}


def pruned(model: nn.Module, pattern: str, scope: str = "tensor") -> gs.Magnitude:
    """A model with live masks by magnitude, its dense weights under them."""
    magnitude = gs.Magnitude(pattern, scope)
    magnitude.prepare(model)
    magnitude.step()
    return magnitude


@pytest.mark.parametrize("update", [LeastSquares(), ObsSweep()])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "unstructured:0.6", "block:3x4:0.5"])
def test_weights_are_corrected_on_the_masks_there_are(update: Part, pattern: str) -> None:
    torch.manual_seed(0)
    # Few directions explain most inputs: kept weights can make up for dropped ones.
    x = torch.einsum("bchw,dc->bdhw", torch.randn(64, 2, 4, 4), torch.randn(6, 2))
    model, x = conv_net(), x + 0.1 * torch.randn(64, 6, 4, 4)
    # Competing over the model, each layer has a sparsity of its own.
    if pattern == "unstructured":
        pruned(model, "unstructured:0.6", "global")
    else:
        pruned(model, pattern)
    before = masks(model)
    assert not all(mask.all() for mask in before.values())
    errors = []
    for parts in ((Existing(),), (Existing(), update)):
        method = OneShot(pattern, *parts)
        method.prepare(model)
        errors.append(method.calibrate([x]).mean_error)
        after = masks(model)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert errors[1] < 0.99 * errors[0]


def test_swaps_improve_the_masks_there_are() -> None:
    torch.manual_seed(0)
    model, x = net(), torch.randn(64, 16).relu()
    pruned(model, "2:4")
    errors = []
    for parts in ((Existing(),), (Existing(), Swap())):
        method = OneShot("2:4", *parts)
        method.prepare(model)
        errors.append(method.calibrate([x]).mean_error)
    assert errors[1] < 0.8 * errors[0]


def test_a_checkpoint_with_masks_is_gone_on_with() -> None:
    model, fresh = net(), net()
    pruned(model, "2:4")
    attach_masks(fresh, model.state_dict())
    fresh.load_state_dict(model.state_dict())
    method = OneShot("2:4", Existing(), LeastSquares())
    method.prepare(fresh)
    method.calibrate([torch.randn(64, 16)])
    assert all(torch.equal(masks(model)[name], mask) for name, mask in masks(fresh).items())


@pytest.mark.parametrize(
    ("before", "pattern", "match"),
    [
        (None, "2:4", r"Existing, '0.weight': nothing has selected its mask.*step\(\)"),
        ("unstructured:0.5", "2:4", "'0.weight': the mask that a part wrote breaks its pattern"),
        ("unstructured:0.5", "block:4x4", "'0.weight': its mask keeps parts of 4x4 blocks"),
        ("unstructured:0.3", "unstructured:0.5", r"30.*% zeros, fewer than 'unstructured:0.5'"),
    ],
)
def test_masks_that_are_none_or_others(before: str | None, pattern: str, match: str) -> None:
    model = net()
    if before is not None:
        pruned(model, before)
    method = OneShot(pattern, Existing())
    method.prepare(model)
    state = snapshot(model)
    with pytest.raises(ValueError, match=match):
        method.calibrate([torch.randn(64, 16)])
    assert_same(model, state)


def test_a_mask_that_keeps_a_whole_layer_is_one() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.copy_(
            10 + torch.rand(8, 32)
        )  # Nothing of it is dropped where all weights compete.
    pruned(model, "unstructured:0.5", "global")
    method = OneShot("unstructured", Existing(), LeastSquares())
    method.prepare(model)
    first, second = method.calibrate([torch.randn(64, 16)]).layers
    assert first.zeros > 0.6
    assert second.zeros == 0


def test_zeros_of_a_weight_are_a_mask() -> None:
    model = net()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:, ::2] = 0
    wanted = [layer.weight != 0 for layer in (model[0], model[2])]
    method = OneShot("2:4", Existing())
    method.prepare(model)
    method.calibrate([torch.randn(64, 16)])
    assert all(torch.equal(a, b) for a, b in zip(wanted, masks(model).values(), strict=True))


@pytest.mark.parametrize("score", [ByTaylor(), ByMovement()])
@pytest.mark.parametrize("made", [net, conv_net])
def test_gradients_select(score: Score, made) -> None:
    torch.manual_seed(0)
    model = made()
    x = torch.randn(32, 16) if made is net else torch.randn(32, 6, 4, 4)
    method = OneShot("unstructured:0.75", score)
    method.prepare(model)
    for part in x.chunk(2):
        model(part).square().mean().backward()
    want = {}
    for group in method.groups:
        weight = method.dense_weight(group)
        first_order = weight.detach() * weight.grad
        scores = first_order.abs() if isinstance(score, ByTaylor) else -first_order
        kept = scores.flatten().topk(weight.numel() - int(0.75 * weight.numel() + 0.5)).indices
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[kept] = True
        want[group["tensor_fqn"]] = mask.view(weight.shape)
    method.calibrate([x])
    assert all(torch.equal(want[name], mask) for name, mask in masks(model).items())


@pytest.mark.parametrize("score", [ByTaylor(), ByMovement()])
def test_scores_without_gradients_are_refused(score: Score) -> None:
    model, method = net(), OneShot("2:4", score)
    method.prepare(model)
    state = snapshot(model)
    with pytest.raises(ValueError, match=r"'0.weight': the weight has no gradient.*backward"):
        method.calibrate([torch.randn(64, 16)])
    assert_same(model, state)


def test_taylor_is_the_sparsifier_of_that_name() -> None:
    torch.manual_seed(0)
    model, x = net(), torch.randn(64, 16)
    method = OneShot("2:4", ByTaylor())
    method.prepare(model)
    taylor = gs.Taylor("2:4")
    taylor.prepare(model)
    model(x).square().mean().backward()
    method.calibrate([x])
    found = masks(model)
    taylor.step()
    # The gradients are those of before: the masks of both are the same.
    assert all(torch.equal(found[name], mask) for name, mask in masks(model).items())
