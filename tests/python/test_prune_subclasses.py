# SPDX-License-Identifier: BSD-3-Clause
"""Sparsifiers of one's own, and Random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.prune import (
    Magnitude,
    Random,
    Sparsifier,
    sparsity_report,
)
from prune_helpers import net

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
