# SPDX-License-Identifier: BSD-3-Clause
"""What `fuse_` and the compile pass must not change: each case once gave another result."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from sparsify_helpers import GENERIC, prune_


class Block(nn.Module):
    """A convolution with a BatchNorm whose numbers are not those of a fresh one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def fused(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model in evaluation mode and its fused copy."""
    torch.manual_seed(0)
    model.eval()
    return model, gs.fuse_(copy.deepcopy(model))


def reason(model: nn.Module, name: str) -> str:
    return str(model.get_submodule(name).gossamer_fusion)


class Noisy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x)) + torch.rand(8)


def test_tensors_that_a_forward_makes_are_made_in_every_call() -> None:
    _, model = fused(Noisy())
    x = torch.randn(2, 8)
    assert not torch.equal(model(x), model(x))
    assert "makes tensors" in reason(model, "linear")
    assert not [name for name in vars(model) if "constant" in name]


class ReadsWeight(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.mean()


class ReadsNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.weight.mean()


@pytest.mark.parametrize("kind", [ReadsWeight, ReadsNorm])
def test_parameters_that_a_forward_uses_itself_stay(kind: type[Block]) -> None:
    plain, model = fused(kind())
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(model(x), plain(x))
    assert "parameters itself" in reason(model, "conv")


class AddsInPlace(Block):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = self.linear(x)
        y += residual
        return F.relu(y)


def test_an_addition_in_place_keeps_the_dtype() -> None:
    plain, model = fused(AddsInPlace().bfloat16())
    x, residual = torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(2, 8)
    assert reason(model, "linear") == "fused: residual, relu"
    assert plain(x, residual).dtype == torch.bfloat16
    assert torch.equal(model(x, residual), plain(x, residual))
    with pytest.raises(RuntimeError, match="output with shape"):  # as `y += r` says it
        model(x, torch.randn(3, 2, 8))


class ChangesArgument(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.linear(x))
        x += y
        return x


class MixesAdditions(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y += x
        return F.relu(y) + x


@pytest.mark.parametrize("kind", [ChangesArgument, MixesAdditions])
def test_changes_in_place_that_others_may_see_are_left_alone(kind: type[Block]) -> None:
    plain, model = fused(kind())
    x = torch.randn(2, 8)
    expected, seen = x.clone(), x.clone()
    assert torch.equal(model(seen), plain(expected))
    assert torch.equal(seen, expected)
    assert "is not read" in reason(model, "linear")


class ReachesIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        return self.block(x) + self.block.conv(x)


def test_a_layer_that_an_unread_module_may_use_too_is_left_alone() -> None:
    plain, model = fused(ReachesIn())
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(model(x), plain(x))
    assert "names a 'conv' too" in reason(model, "block.conv")


def test_a_state_from_before_is_not_taken_for_one_of_now() -> None:
    plain, model = fused(Block())
    assert reason(model, "conv") == "fused: BatchNorm 'norm', relu"
    with pytest.raises(RuntimeError, match=r"Unexpected key.*norm\.running_mean"):
        model.load_state_dict(plain.state_dict())
    model.load_state_dict(model.state_dict())


class NamesInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.dropout(input=self.linear(x), p=0.5, training=False))


def test_a_dropout_whose_input_is_named() -> None:
    plain, model = fused(NamesInput())
    x = torch.randn(2, 8)
    torch.testing.assert_close(model(x), plain(x))
    assert reason(model, "linear") == "fused: relu"


class ChangesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 48)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * 1.0
        y = self.linear(x)
        x.mul_(3)
        return F.relu(y), x


def test_the_compile_pass_leaves_a_layer_where_it_is() -> None:
    model = ChangesInput().eval()
    prune_(model.linear.weight)
    gs.sparsify_(model, layout=GENERIC)
    x = torch.randn(5, 32)
    options = {"pre_grad_custom_pass": gs.fusion_pass}
    with torch.no_grad():
        expected = model(x)[0]
        torch.compiler.reset()
        actual = torch.compile(model, options=options, fullgraph=True)(x)[0]
    torch.testing.assert_close(actual, expected)
