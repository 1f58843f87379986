# SPDX-License-Identifier: BSD-3-Clause
"""The old names of torchao's pruning, and masks of torch.nn.utils.prune."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import gossamer as gs
from gossamer.compat import torchao as old
from gossamer.prune import density, from_torch_prune, masked_parameters, to_torch_prune

ops = torch.ops.gossamer

VARIADIC, KEYWORDS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


# --- Names ----------------------------------------------------------------------------------------

# Read from the wheel of torchao 0.18.0: the public names of torchao.sparsity,
# torchao.prototype.sparsity and their utils, with the public methods of the classes.
SIGNATURES = {
    "apply_fake_sparsity": "(model, **kwargs)",
    "sparsify_": "(model, config, filter_fn=None)",
    "SupermaskLinear": "(sparsity_level, blocksize, fixed_mask, fixed_weight, *args, **kwargs)",
    "SupermaskLinear.get_mask": "(self)",
    "SupermaskLinear.forward": "(self, x)",
    "SupermaskLinear.from_linear": "(linear, sparsity_level=0.0, blocksize=1)",
    "SupermaskLinear.to_linear": "(supermask_linear)",
    "create_block_sparse_tensor": "(M, N, blocksize, sparsity, dtype)",
    "create_semi_structured_tensor": "(r, c, dtype)",
    "mask_creator": "(tensor, N=2, M=4)",
    "PerChannelNormObserver": "(**kwargs)",
    "PerChannelNormObserver.forward": "(self, x_orig)",
    "PerChannelNormObserver.calculate_qparams": "(self)",
    "WandaSparsifier": "(sparsity_level=0.5, semi_structured_block_size=None)",
    "WandaSparsifier.prepare": "(self, model, config)",
    "WandaSparsifier.squash_mask": (
        "(self, params_to_keep=None, params_to_keep_per_layer=None, *args, **kwargs)"
    ),
    "BaseScheduler": "(sparsifier, last_epoch=-1, verbose=False)",
    "BaseScheduler.state_dict": "(self)",
    "BaseScheduler.load_state_dict": "(self, state_dict)",
    "BaseScheduler.get_last_sl": "(self)",
    "BaseScheduler.get_sl": "(self)",
    "BaseScheduler.print_sl": "(self, is_verbose, group, sl, epoch=None)",
    "BaseScheduler.step": "(self, epoch=None)",
    "CubicSL": (
        "(sparsifier, init_sl=0.0, init_t=0, delta_t=10, total_t=100, initially_zero=False, "
        "last_epoch=-1, verbose=False)"
    ),
    "CubicSL.sparsity_compute_fn": "(s_0, s_f, t, t_0, dt, n, initially_zero=False)",
    "CubicSL.get_sl": "(self)",
    "LambdaSL": "(sparsifier, sl_lambda, last_epoch=-1, verbose=False)",
    "LambdaSL.get_sl": "(self)",
    "BaseSparsifier": "(defaults=None)",
    "BaseSparsifier.state_dict": "(self)",
    "BaseSparsifier.load_state_dict": "(self, state_dict, strict=True)",
    "BaseSparsifier.make_config_from_model": "(self, model, SUPPORTED_MODULES=...)",
    "BaseSparsifier.prepare": "(self, model, config)",
    "BaseSparsifier.squash_mask": (
        "(self, params_to_keep=None, params_to_keep_per_layer=None, *args, **kwargs)"
    ),
    "BaseSparsifier.convert": ("(self, module, mapping=None, inplace=False, parameterization=...)"),
    "BaseSparsifier.step": "(self, use_path=True)",
    "BaseSparsifier.update_mask": "(self, module, tensor_name, **kwargs)",
    "NearlyDiagonalSparsifier": "(nearliness=1)",
    "WeightNormSparsifier": (
        "(sparsity_level=0.5, sparse_block_shape=(1, 4), zeros_per_block=None, norm=None)"
    ),
    "module_contains_param": "(module, parametrization)",
    "swap_module": "(mod, mapping)",
    "module_to_fqn": "(model, module, prefix='')",
    "fqn_to_module": "(model, path)",
    "get_arg_info_from_tensor_fqn": "(model, tensor_fqn)",
    "FakeSparsity": "(mask)",
    "FakeSparsity.forward": "(self, x)",
    "SemiSparseWeightConfig": "(alg_id=0)",
    "BlockSparseWeightConfig": "(blocksize=64)",
    "semi_sparse_weight": "(alg_id=0)",
    "block_sparse_weight": "(blocksize=64)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_old_calls_bind(name: str) -> None:
    """Parameters have their old places, names and defaults; only optional ones are added."""
    code = f"def old{SIGNATURES[name]}: pass"
    scope: dict[str, Any] = {}
    exec(code, scope)
    was = list(inspect.signature(scope["old"]).parameters.values())
    found: Any = old
    for part in name.split("."):
        found = getattr(found, part)
    own = inspect.signature(found).parameters
    is_any = {kind: any(p.kind == kind for p in own.values()) for kind in (VARIADIC, KEYWORDS)}
    positional = [p for p in own.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    for place, parameter in enumerate(was):
        if parameter.kind in is_any:
            # apply_fake_sparsity's **kwargs were one: filter_fn.
            assert is_any[parameter.kind] or "filter_fn" in own
            continue
        assert positional[place].name == parameter.name
        if parameter.default is not ...:
            free = parameter.default is parameter.empty and positional[place].default is None
            assert free or positional[place].default == parameter.default
        else:
            assert positional[place].default is not parameter.empty
    required = [p for p in positional[len(was) :] if p.default is p.empty]
    assert not required


def test_every_old_name_is_exported() -> None:
    assert {name for name in SIGNATURES if "." not in name} <= set(old.__all__)


# --- Sparsifiers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "shape", "zeros"),
    [(0.5, (1, 4), None), (1.0, (1, 4), 2), (0.75, (4, 4), None), (0.5, (2, 2), 3)],
)
def test_weight_norms_zero_what_torch_zeroes(
    level: float, shape: tuple[int, int], zeros: int | None
) -> None:
    pruning = pytest.importorskip("torch.ao.pruning")
    model = net()
    other = copy.deepcopy(model)
    for one, kind in ((model, old.WeightNormSparsifier), (other, pruning.WeightNormSparsifier)):
        sparsifier = kind(level, shape, zeros)
        sparsifier.prepare(one, None)
        sparsifier.step()
        sparsifier.squash_mask()
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_dropped_weights_may_come_back_unless_the_old_way_is_asked_for() -> None:
    for as_in_torchao in (False, True):
        model = net()
        sparsifier = old.WeightNormSparsifier(0.5, (1, 1), as_in_torchao=as_in_torchao)
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
        before = sparsifier.mask(sparsifier.groups[0]).clone()
        with torch.no_grad():
            sparsifier.dense_weight(sparsifier.groups[0])[~before] = 100.0
        sparsifier.step()
        back = sparsifier.mask(sparsifier.groups[0]) & ~before
        assert int(back.sum()) == (0 if as_in_torchao else before.numel() // 2)


def test_a_row_that_ends_in_a_narrower_block() -> None:
    model = nn.Sequential(nn.Linear(18, 8))
    sparsifier = old.WeightNormSparsifier(1.0, (1, 4), 2)
    sparsifier.prepare(model)
    sparsifier.step()
    assert ops.find_violation(model[0].weight.detach(), "2:4") == ""


def test_wanda_is_the_papers_unless_the_old_way_is_asked_for() -> None:
    x = torch.randn(256, 16) * torch.linspace(0.2, 3, 16)
    for as_in_torchao in (False, True):
        model = nn.Sequential(nn.Linear(16, 8))
        sparsifier = old.WandaSparsifier(0.5, as_in_torchao=as_in_torchao)
        sparsifier.prepare(model, None)
        with pytest.raises(RuntimeError, match="run the model on calibration data"):
            sparsifier.step()
        for batch in x.split(64):
            model(batch)
        sparsifier.step()
        sparsifier.squash_mask()
        assert not model[0]._forward_pre_hooks
        rows = (model[0].weight != 0).sum(dim=1)
        assert int(rows.sum()) == 64
        assert bool((rows == 8).all()) is not as_in_torchao
    # Keeping W = [3, 2] with norms [1, 1.3]: 3 > 2.6, but 3 < 2 · 1.69.
    for as_in_torchao, kept in ((False, 0), (True, 1)):
        layer = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[3.0, 2.0]]))
        sparsifier = old.WandaSparsifier(0.5, as_in_torchao=as_in_torchao)
        sparsifier.prepare(layer, None)
        layer(torch.tensor([[1.0, 1.3]]))
        sparsifier.step()
        assert layer.weight[0, kept] != 0
        assert layer.weight[0, 1 - kept] == 0


@pytest.mark.parametrize(("size", "pattern"), [(4, "2:4"), (8, "4:8")])
def test_wanda_in_groups(size: int, pattern: str) -> None:
    model = net()
    sparsifier = old.WandaSparsifier(semi_structured_block_size=size)
    sparsifier.prepare(model, [{"tensor_fqn": "2.weight"}])
    model(torch.randn(32, 16))
    sparsifier.step()
    sparsifier.squash_mask()
    assert ops.find_violation(model[2].weight.detach(), pattern) == ""
    assert (model[0].weight != 0).all()


def wanda(model: nn.Module) -> old.WandaSparsifier:
    sparsifier = old.WandaSparsifier(0.5)
    sparsifier.prepare(model, None)
    return sparsifier


@pytest.mark.parametrize("prepared", [False, True])
def test_the_norms_of_wanda_are_part_of_its_state(prepared: bool, tmp_path: Path) -> None:
    model, x = net(), torch.randn(64, 16) * torch.linspace(0.2, 3, 16)
    sparsifier = wanda(model)
    model(x[:40])
    weights = copy.deepcopy(model.state_dict())
    torch.save(sparsifier.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh, again = net(), old.WandaSparsifier(0.5)
    if prepared:
        again.prepare(fresh, None)
        again.load_state_dict(state)
    else:
        again.load_state_dict(state)
        again.prepare(fresh)
    fresh.load_state_dict(weights)
    for one, own in ((model, sparsifier), (fresh, again)):
        one(x[40:])  # Half of the data after the resumption.
        own.step()
        own.squash_mask()
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_a_copy_of_a_model_that_wanda_watches_feeds_its_own_copy() -> None:
    model = net()
    sparsifier = wanda(model)
    x, other = torch.randn(8, 16), torch.randn(8, 16)
    model(x)
    before = sparsifier.state_dict()["state"]["0.weight"]["norm"].clone()
    alone = copy.deepcopy(model)
    alone(other)  # Nobody asks what it saw.
    assert torch.equal(sparsifier.state_dict()["state"]["0.weight"]["norm"], before)
    both, copied = copy.deepcopy((model, sparsifier))
    both(other)
    assert torch.equal(sparsifier.state_dict()["state"]["0.weight"]["norm"], before)
    seen = copied.state_dict()["state"]["0.weight"]["norm"]
    torch.testing.assert_close(seen, before + other.square().sum(dim=0))
    copied.step()
    copied.squash_mask()
    assert not both[0]._forward_pre_hooks
    assert model[0]._forward_pre_hooks


def test_wanda_sees_inputs_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    model, x = Named(), torch.randn(8, 16)
    sparsifier = wanda(model)
    model(x)
    seen = sparsifier.state_dict()["state"]["layer.weight"]["norm"]
    torch.testing.assert_close(seen, x.square().sum(dim=0))
    with pytest.raises(TypeError, match="without a tensor as its first argument or `input=`"):
        model(None)


def test_sparsifiers_of_ones_own() -> None:
    class FirstRows(old.BaseSparsifier):
        def update_mask(self, module: nn.Module, tensor_name: str, **group: Any) -> None:
            mask = module.parametrizations[tensor_name][0].mask
            mask.data[group["rows"] :] = 0

    model = net()
    sparsifier = FirstRows({"rows": 3})
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "rows": 5}])
    sparsifier.step()
    sparsifier.squash_mask(params_to_keep=("rows",))
    assert model[2].sparse_params == {"rows": 5}
    assert (model[0].weight[3:] == 0).all()
    assert (model[2].weight[:5] != 0).all()


def test_an_old_sparsifier_may_put_numbers_into_the_mask() -> None:
    class Large(old.BaseSparsifier):
        def update_mask(self, module: nn.Module, tensor_name: str, **group: Any) -> None:
            mask = module.parametrizations[tensor_name][0].mask
            mask.data = (module.parametrizations[tensor_name].original.abs() > 0.1).float()

    model = net()
    dense = model[0].weight.detach().clone()
    sparsifier = Large()
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert sparsifier.mask(sparsifier.groups[0]).dtype == torch.bool
    assert torch.equal(model[0].weight, torch.where(dense.abs() > 0.1, dense, 0))
    sparsifier.squash_mask()
    assert 0 < (model[0].weight == 0).sum() < dense.numel()


def test_nearly_diagonal() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    sparsifier = old.NearlyDiagonalSparsifier(3)
    sparsifier.prepare(model)
    sparsifier.step()
    want = torch.ones(6, 6).tril(1).triu(-1).bool()
    assert torch.equal(model[0].weight != 0, want)
    with pytest.raises(ValueError, match="odd"):
        old.NearlyDiagonalSparsifier(2)


def test_fake_sparsity_takes_float_masks() -> None:
    weight = torch.randn(3, 4)
    mask = (torch.rand(3, 4) > 0.5).float()
    assert torch.equal(old.FakeSparsity(mask)(weight), weight * mask)


# --- Schedulers -----------------------------------------------------------------------------------


def test_schedulers_set_what_torch_sets() -> None:
    pruning = pytest.importorskip("torch.ao.pruning")
    levels = []
    for names in (old, pruning):
        sparsifier = names.WeightNormSparsifier(0.8)
        sparsifier.prepare(net(), None)
        own = []
        cubic = names.CubicSL(sparsifier, init_sl=0.1, init_t=2, delta_t=1, total_t=5)
        for _ in range(8):
            own.append(cubic.get_last_sl()[0])
            sparsifier.step()
            cubic.step()
        other = names.WeightNormSparsifier(0.8)
        other.prepare(net(), None)
        by_lambda = names.LambdaSL(other, lambda epoch: min(1, epoch / 3))
        for _ in range(4):
            own.append(by_lambda.get_last_sl()[1])
            other.step()
            by_lambda.step()
        levels.append(own)
    assert levels[0] == pytest.approx(levels[1])
    assert max(levels[0]) == pytest.approx(0.8)


def test_schedulers_say_what_they_cannot_schedule() -> None:
    sparsifier = gs.Magnitude("2:4")
    sparsifier.prepare(net())
    with pytest.raises(TypeError, match="no groups with 'sparsity_level'"):
        old.LambdaSL(sparsifier, lambda epoch: 1.0)


# --- Supermask and helpers ------------------------------------------------------------------------


@pytest.mark.parametrize("blocksize", [1, 3])
def test_supermask_layers(blocksize: int) -> None:
    linear = nn.Linear(10, 7)
    layer = old.SupermaskLinear.from_linear(linear, 0.5, blocksize)
    mask = layer.get_mask()
    blocks = math.ceil(10 / blocksize) * math.ceil(7 / blocksize)
    chosen = layer.scores.detach().flatten().sort(descending=True).values[: blocks - blocks // 2]
    assert mask[::blocksize, ::blocksize].sum() == len(chosen)
    x = torch.randn(4, 10)
    want = nn.functional.linear(x, linear.weight * mask, linear.bias)
    torch.testing.assert_close(layer(x), want)
    layer(x).square().sum().backward()
    plain = (linear.weight.detach() * mask).requires_grad_()
    nn.functional.linear(x, plain, linear.bias).square().sum().backward()
    moved = plain.grad * linear.weight.detach()
    for r in range(layer.scores.shape[0]):
        for c in range(layer.scores.shape[1]):
            part = moved[r * blocksize : (r + 1) * blocksize, c * blocksize : (c + 1) * blocksize]
            assert layer.scores.grad[r, c].item() == pytest.approx(part.sum().item(), abs=1e-4)
    assert torch.equal(layer.weight.grad, plain.grad)
    torch.testing.assert_close(old.SupermaskLinear.to_linear(layer)(x), want)


def test_more_sparsity_than_a_block_allows() -> None:
    with pytest.warns(UserWarning, match=r"sparsity 0.95 is lowered to 0.75"):
        layer = old.SupermaskLinear(0.95, 4, False, True, 8, 8)
    assert layer.get_mask().sum() == 16
    assert not layer.weight.requires_grad


def test_scores_get_the_old_gradient_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    layers = [
        old.SupermaskLinear(0.5, 2, False, False, 6, 4, as_in_torchao=way) for way in (True, False)
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(8, 6)
    for layer in layers:
        layer(x).square().sum().backward()
    assert torch.equal(layers[0].weight.grad, layers[1].weight.grad)
    grad, weight = layers[0].weight.grad, layers[0].weight.detach()
    for layer, moved in zip(layers, (grad, grad * weight), strict=True):
        want = moved.view(2, 2, 3, 2).sum(dim=(1, 3))
        torch.testing.assert_close(layer.scores.grad, want)


class Half(nn.Module):
    """A module that another one is made of."""

    @classmethod
    def from_dense(cls, module: nn.Linear) -> Half:
        made = cls()
        made.weight = nn.Parameter(module.weight.detach() / 2)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize("inplace", [False, True])
def test_convert_swaps_masked_modules_alone(inplace: bool) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 4))
    sparsifier = old.WeightNormSparsifier()
    sparsifier.prepare(model, [{"tensor_fqn": "0.0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    calls: list[str] = []
    model[2].register_forward_hook(lambda *_: calls.append("after"))
    want = model[2].weight.detach() / 2
    with pytest.raises(NotImplementedError, match="mapping None"):
        sparsifier.convert(model)
    made = sparsifier.convert(model, {nn.Linear: Half}, inplace=inplace)
    assert (made is model) is inplace
    assert [type(made[0][0]), type(made[1]), type(made[2])] == [Half, nn.Linear, Half]
    assert torch.equal(made[2].weight, want)
    made(torch.randn(2, 4))
    assert calls == ["after"]
    assert isinstance(model[2], Half) is inplace


def test_modules_that_are_not_mapped_stay() -> None:
    layer = nn.Linear(4, 4)
    assert old.swap_module(layer, {}) is layer
    assert not old.module_contains_param(layer, old.FakeSparsity)
    sparsifier = old.WeightNormSparsifier()
    sparsifier.make_config_from_model(nn.Sequential(layer, nn.Conv2d(1, 1, 1)))
    assert sparsifier.config == [{"tensor_fqn": "0.weight"}]
    sparsifier.prepare(nn.Sequential(layer))
    assert old.module_contains_param(layer, old.FakeSparsity)
    assert not old.module_contains_param(layer, nn.Dropout)


def test_helpers() -> None:
    model = net()
    assert old.module_to_fqn(model, model[2], "a.") == "a.2"
    assert old.module_to_fqn(model, model, "a.") == ""
    assert old.module_to_fqn(model, model[2]) == "2"
    assert old.module_to_fqn(model, nn.ReLU()) is None
    assert old.fqn_to_module(model, "2.weight") is model[2].weight
    info = old.get_arg_info_from_tensor_fqn(model, "2.weight")
    assert (info["module"], info["tensor_name"], info["module_fqn"]) == (model[2], "weight", "2")
    observer = old.PerChannelNormObserver()
    x: Tensor = torch.randn(3, 5, 4)
    assert observer(x) is x
    observer(x)
    torch.testing.assert_close(observer.norm, 2 * x.square().sum(dim=(0, 1)))
    mask = old.mask_creator(torch.tensor([[1.0, -3, 2, 0], [0, 0, 5, 4]]))
    assert torch.equal(mask, torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1]]))
    sparse = old.create_semi_structured_tensor(4, 8, torch.bfloat16)
    assert ops.find_violation(sparse, "1:2") == ""
    blocks = old.create_block_sparse_tensor(8, 8, 4, 0.5, torch.float32)
    assert set(blocks.view(2, 4, 2, 4).sum(dim=(1, 3)).flatten().tolist()) <= {0.0, 16.0}


# --- torch.nn.utils.prune -------------------------------------------------------------------------


def test_masks_of_torch_prune_come_in_and_go_out() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Conv2d(3, 4, 3))
    dense = {name: value.detach().clone() for name, value in model.named_parameters()}
    names = list(dense)
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    torch_prune.ln_structured(model[1], "weight", 0.5, n=2, dim=0)
    torch_prune.random_unstructured(model[1], "weight", 0.2)
    want = [model[0].weight.detach().clone(), model[1].weight.detach().clone()]
    original = model[0].weight_orig
    assert from_torch_prune(model) is model
    assert [name for name, *_ in masked_parameters(model)] == ["0.weight", "1.weight"]
    assert torch.equal(model[0].weight, want[0])
    assert torch.equal(model[1].weight, want[1])
    assert model[0].parametrizations.weight.original is original
    sparsifier = gs.Magnitude("unstructured:0.5")
    sparsifier.prepare(model)
    to_torch_prune(model)
    assert torch_prune.is_pruned(model)
    assert torch.equal(model[1].weight, want[1])
    for module in model:
        torch_prune.remove(module, "weight")
    assert set(dict(model.named_parameters())) == set(names)
    assert torch.equal(model[0].weight, want[0])
    assert 0 < density(model) < 1


def test_models_without_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="has put nothing on this model"):
        from_torch_prune(net())
    with pytest.raises(ValueError, match="has no live masks"):
        to_torch_prune(net())
