# SPDX-License-Identifier: BSD-3-Clause
"""What must survive: checkpoints, resumed runs, copies, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier

from gossamer.prune import (
    GradualMagnitude,
    Magnitude,
    Random,
    Sparsifier,
    attach_masks,
    density,
    from_torch_prune,
    masked_parameters,
    squash_masks,
)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}

PRUNERS: dict[str, Callable[[], Sparsifier]] = {
    "unstructured": lambda: GradualMagnitude(
        "unstructured:0.8", 2, 17, every=3, initial_sparsity=0.1
    ),
    "2:4": lambda: GradualMagnitude("2:4", 0, 18),
    "global": lambda: GradualMagnitude("unstructured:0.8", 0, 15, every=2, scope="global"),
    "random": lambda: Random("unstructured:0.5", seed=7),
}


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


class Run:
    """A model in training."""

    def __init__(self, optimizer: str, pruner: str) -> None:
        self.model = net()
        self.pruner = PRUNERS[pruner]()
        self.pruner.prepare(self.model)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())

    def train(self, steps: range) -> None:
        for step in steps:
            data = torch.Generator().manual_seed(step)
            x = torch.randn(16, 4, 6, 6, generator=data)
            y = torch.randint(5, (16,), generator=data)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.pruner.step()


def assert_equal_state(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("saved", ["all", "model and optimizer"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_resumed_run_is_bit_equal(
    pruner: str, optimizer: str, saved: str, tmp_path: Path
) -> None:
    straight = Run(optimizer, pruner)
    start = copy.deepcopy(straight.model.state_dict())
    straight.train(range(20))
    assert 0.1 < density(straight.model) < 0.6

    first = Run(optimizer, pruner)
    first.model.load_state_dict(start)
    first.train(range(10))
    torch.save(
        {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "pruner": first.pruner.state_dict(),
        },
        tmp_path / "checkpoint.pt",
    )
    masks_at_ten = [mask.mask.clone() for *_, mask in masked_parameters(first.model)]

    torch.manual_seed(99)
    second = Run(optimizer, pruner)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.model.load_state_dict(checkpoint["model"])
    second.optimizer.load_state_dict(checkpoint["optimizer"])
    if saved == "all":
        second.pruner.load_state_dict(checkpoint["pruner"])
    assert second.pruner.step_count == 10
    second.train(range(10, 20))
    assert_equal_state(second.model, straight.model)
    # The second half did change masks, so that the schedule's place mattered.
    masks_at_twenty = [mask.mask for *_, mask in masked_parameters(second.model)]
    assert any(not torch.equal(a, b) for a, b in zip(masks_at_ten, masks_at_twenty, strict=True))


def test_resuming_without_the_step_would_differ() -> None:
    """The test above can fail: a schedule that starts over ends elsewhere."""
    straight, broken = Run("sgd", "unstructured"), Run("sgd", "unstructured")
    broken.model.load_state_dict(straight.model.state_dict())
    straight.train(range(20))
    broken.train(range(10))
    for *_, mask in masked_parameters(broken.model):
        mask.steps.zero_()
    broken.train(range(10, 20))
    assert density(straight.model) != density(broken.model)


def test_load_before_prepare(tmp_path: Path) -> None:
    run = Run("sgd", "unstructured")
    run.pruner.squash_mask()
    run.pruner.prepare(run.model, {"3": {"every": 2}, "5": "2:4"})
    run.train(range(10))
    torch.save([run.model.state_dict(), run.pruner.state_dict()], tmp_path / "checkpoint.pt")
    model_state, pruner_state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    model = net()
    attach_masks(model, model_state)
    model.load_state_dict(model_state)
    assert_equal_state(model, run.model)
    pruner = PRUNERS["unstructured"]()
    pruner.load_state_dict(pruner_state)
    assert pruner.step_count == 10
    assert pruner.state_dict() == pruner_state
    pruner.prepare(model)
    assert_equal_state(model, run.model)
    assert pruner.state_dict() == run.pruner.state_dict()
    for other in (run.pruner, pruner):
        other.step()
    assert_equal_state(model, run.model)


def test_loading_changes_neither_its_argument_nor_anything_on_failure() -> None:
    run = Run("sgd", "unstructured")
    run.train(range(3))
    saved = run.pruner.state_dict()
    before = copy.deepcopy(saved)
    other = PRUNERS["unstructured"]()
    other.prepare(net(), {"3": {}})
    with pytest.raises(
        ValueError, match=r"other weights: not saved \[\], not prepared \['0.weight"
    ):
        other.load_state_dict(saved)
    assert other.step_count == 0
    other.load_state_dict(saved, strict=False)
    assert other.step_count == 3
    assert saved == before
    with pytest.raises(ValueError, match=r"unknown hyperparameters \['begin_step'"):
        Magnitude("2:4").load_state_dict(saved)
    with pytest.raises(ValueError, match=r"has no \['seed'\]; Random takes"):
        Random("2:4").load_state_dict(Magnitude("2:4").state_dict() | {"groups": [GROUP]})
    with pytest.raises(ValueError, match=r"state lacks \['groups', 'state'\]"):
        other.load_state_dict({"steps": 3, "enable_mask_update": True})
    elsewhere = PRUNERS["unstructured"]()
    elsewhere.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"no parameter '0.weight'"):
        elsewhere.prepare(nn.Linear(4, 4))


GROUP = {"tensor_fqn": "weight", "pattern": "2:4", "scope": "tensor"}


def test_state_of_a_subclass_is_saved(tmp_path: Path) -> None:
    class Averaged(Sparsifier):
        """Scores with a running mean, which must not start over."""

        def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
            own = self.state[group["tensor_fqn"]]
            own["mean"] = 0.5 * own.get("mean", torch.zeros_like(weight)) + weight.abs()
            return own["mean"]

    model = net()
    pruner = Averaged("2:4")
    pruner.prepare(model)
    pruner.step()
    torch.save([model.state_dict(), pruner.state_dict()], tmp_path / "checkpoint.pt")
    model_state, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other, again = net(), Averaged("2:4")
    again.prepare(other)
    other.load_state_dict(model_state)
    again.load_state_dict(state)
    for own in (pruner, again):
        own.step()
    for fqn, own in pruner.state.items():
        assert torch.equal(again.state[fqn]["mean"], own["mean"])
    saved = again.state["0.weight"]["mean"]
    assert saved is not state["state"]["0.weight"]["mean"]


def test_deepcopy_of_model_and_sparsifier_together() -> None:
    run = Run("sgd", "random")
    run.train(range(2))
    model, pruner = copy.deepcopy((run.model, run.pruner))
    assert pruner.model is model
    assert all(
        group["module"] is model.get_submodule(group["module_fqn"]) for group in pruner.groups
    )
    before = copy.deepcopy(run.model.state_dict())
    pruner.step()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name])
    run.pruner.step()
    assert_equal_state(model, run.model)
    alone = copy.deepcopy(run.model)
    pruner.squash_mask()
    assert type(model[3]) is nn.Linear
    assert_equal_state(alone, run.model)


@pytest.mark.parametrize("first", ["copy", "original"])
def test_a_copy_is_squashed_by_itself(first: str) -> None:
    """torch's class with the property for the weight is shared by copies."""
    model, x = net(), torch.randn(3, 4, 6, 6)
    pruner = Magnitude("unstructured:0.5")
    pruner.prepare(model)
    pruner.step()
    copied, its_pruner = copy.deepcopy((model, pruner))
    want = model(x)
    order = [(copied, its_pruner), (model, pruner)]
    for squashed, own in order if first == "copy" else reversed(order):
        own.squash_mask()
        for each in (model, copied):
            assert torch.equal(each(x), want)
        assert list(masked_parameters(squashed)) == []
        assert type(squashed[3]) is nn.Linear


def test_a_mask_on_a_copy_is_on_that_copy_alone() -> None:
    model, x = net(), torch.randn(3, 4, 6, 6)
    Magnitude("2:4").prepare(model, [{"tensor_fqn": "3.weight"}])
    model[3].register_parameter("extra", nn.Parameter(torch.randn(4, 4)))
    copied = copy.deepcopy(model)
    Magnitude("2:4").prepare(copied, [{"tensor_fqn": "3.extra"}])
    assert torch.equal(model[3].extra, copied[3].extra)
    assert isinstance(model[3].extra, nn.Parameter)
    assert torch.equal(model(x), copied(x))


def test_attach_masks_needs_no_method() -> None:
    source = net()
    pruner = Magnitude("2:4")
    pruner.prepare(source, {"3": {}})
    pruner.step()
    model = net()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(source.state_dict())
    assert attach_masks(model, source.state_dict()) is model
    model.load_state_dict(source.state_dict())
    assert [name for name, *_ in masked_parameters(model)] == ["3.weight"]
    assert torch.equal(model[3].weight, source[3].weight)
    assert not torch.equal(model[3].parametrizations.weight.original, source[3].weight)
    attach_masks(model, source.state_dict())
    assert len(model[3].parametrizations.weight) == 1


def test_attach_masks_from_zeros_keeps_them_in_training() -> None:
    model = net()
    for layer in (model[0], model[3]):
        mask = torch.ops.gossamer.magnitude_mask(
            layer.weight.detach().flatten(1), "unstructured:0.5", "tensor"
        )
        with torch.no_grad():
            layer.weight.mul_(mask.view_as(layer.weight))
    attach_masks(model)
    assert [name for name, *_ in masked_parameters(model)] == ["0.weight", "3.weight"]
    zeros = [model[index].weight == 0 for index in (0, 3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 4, 6, 6)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight == 0, zeros[0])
    assert torch.equal(model[3].weight == 0, zeros[1])


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("9.parametrizations.weight.0.mask", (5, 24), "no parameter '9.weight'"),
        (
            "5.parametrizations.weight.0.mask",
            (5, 25),
            r"is \[5, 25\], the model's weight \[5, 24\]",
        ),
        ("5.parametrizations.bias.0.mask", (4,), r"is \[4\], the model's weight \[5\]"),
    ],
)
def test_attach_masks_refuses_what_does_not_fit(
    key: str, shape: tuple[int, ...], match: str
) -> None:
    model = net()
    state = {
        "3.parametrizations.weight.0.mask": torch.ones(24, 128, dtype=torch.bool),
        key: torch.ones(shape, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=match):
        attach_masks(model, state)
    assert list(masked_parameters(model)) == []
    assert type(model[3]) is nn.Linear


@pytest.mark.parametrize("by_sparsifier", [True, False])
def test_a_module_under_two_names_is_squashed_once(by_sparsifier: bool) -> None:
    layer = nn.Linear(16, 16)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    sparsifier = Magnitude("unstructured:0.5")
    sparsifier.prepare(model)
    sparsifier.step()
    if by_sparsifier:
        sparsifier.squash_mask()
    else:
        squash_masks(model)
    assert type(layer) is nn.Linear
    assert list(masked_parameters(model)) == []
    assert int((layer.weight == 0).sum()) == 128


def test_masks_that_no_sparsifier_holds_are_squashed() -> None:
    model = net()
    with torch.no_grad():
        model[3].weight[:, ::2] = 0
    parameters = [id(parameter) for parameter in model.parameters()]
    torch.nn.utils.prune.l1_unstructured(model[5], "bias", 0.4)
    from_torch_prune(attach_masks(model))
    assert [name for name, *_ in masked_parameters(model)] == ["3.weight", "5.bias"]
    other = attach_masks(net(), model.state_dict())  # A bias keeps its mask in a checkpoint too.
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(other(x), model(x))
    with torch.no_grad():
        model[3].parametrizations.weight.original.add_(1)  # What is dropped too, as decay would.
    want = model(x)
    assert squash_masks(model) is model
    assert type(model[3]) is type(model[5]) is nn.Linear
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert (model[3].weight[:, ::2] == 0).all()
    assert (model[3].weight[:, 1::2] != 0).all()
    assert int((model[5].bias == 0).sum()) == 2
    assert torch.equal(model(x), want)
    with pytest.raises(ValueError, match="no live masks"):
        squash_masks(model)


def test_checkpoints_of_other_masks_that_count_no_steps_load() -> None:
    """Those of torchao, which have the dtype of the weight."""
    dense = torch.randn(8, 8)
    state = {
        "bias": torch.randn(8),
        "parametrizations.weight.original": dense,
        "parametrizations.weight.0.mask": torch.eye(8),
    }
    model = attach_masks(nn.Linear(8, 8), state)
    model.load_state_dict(state)
    assert torch.equal(model.weight, dense * torch.eye(8))
    assert model.parametrizations.weight[0].mask.dtype == torch.bool
    assert set(state) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0.mask",
    }


def test_masks_that_torch_ao_pruning_left_with_its_sparsifier() -> None:
    torch.manual_seed(0)
    theirs = net()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(theirs, [{"tensor_fqn": "3.weight"}])
    sparsifier.step()
    state = theirs.state_dict()
    model = net()
    match = r"'3.parametrizations.weight.original', .* not the mask; .*\['state'\]\['3.weight'\]"
    with pytest.raises(ValueError, match=match):
        attach_masks(model, state)
    assert list(masked_parameters(model)) == []
    mask = sparsifier.state_dict()["state"]["3.weight"]["mask"]
    state["3.parametrizations.weight.0.mask"] = mask
    attach_masks(model, state).load_state_dict(state)
    assert 0 < int((model[3].weight == 0).sum()) < mask.numel()
    assert torch.equal(model[3].weight, theirs[3].weight)


def test_compiled_models_follow_their_masks() -> None:
    model = net()
    pruner = Random("2:4")
    pruner.prepare(model)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(4, 4, 6, 6)
    outputs = []
    for _ in range(3):
        pruner.step()
        outputs.append(compiled(x))
        want = model(x)
        # The compiled convolution may sum in another order: 36, 128 and 24 products a layer.
        bound = 200 * torch.finfo(torch.float32).eps * _absolute(model, x)
        assert ((outputs[-1] - want).abs() <= bound).all()
    assert not torch.allclose(outputs[0], outputs[1])
    compiled(x).sum().backward()
    for group in pruner.groups:
        gradient = pruner.dense_weight(group).grad
        assert gradient is not None
        assert gradient[~pruner.mask(group)].eq(0).all()


def _absolute(model: nn.Sequential, x: Tensor) -> Tensor:
    """The network on absolute values: bounds every partial sum."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
    return twin(x.abs()).detach()
