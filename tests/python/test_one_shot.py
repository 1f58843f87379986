# SPDX-License-Identifier: BSD-3-Clause
"""One-shot pruning: what layers see, what methods find, what errors leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import (
    ALPS,
    RIA,
    Admm,
    Best,
    ByMagnitude,
    ByObs,
    ByRandom,
    ByWanda,
    LayerProblem,
    LayerResult,
    LeastSquares,
    ObsSweep,
    OneShot,
    Score,
    SparseGPT,
    Swap,
    Wanda,
)
from gossamer.prune.layer import LayerForm
from prune_helpers import Stripes

ops = torch.ops.gossamer


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8)
    )


def correlated(tokens: int, size: int) -> Tensor:
    """Like what a ReLU gives: not negative, and a few directions explain most of it."""
    hidden = torch.randn(tokens, size // 4) @ torch.randn(size // 4, size)
    return (hidden + 0.3 * torch.randn(tokens, size)).relu()


def data(count: int = 4) -> list[Tensor]:
    mix = torch.randn(16, 16) / 4
    return [torch.randn(64, 16) @ mix for _ in range(count)]


def gram_of(x: Tensor) -> Tensor:
    return x.double().T @ x.double() / len(x)


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
        "parameters": [(name, id(p), p.grad is None) for name, p in model.named_parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    for key in ("training", "hooks", "parameters"):
        assert after[key] == before[key], key
    for name, value in before["values"].items():
        assert torch.equal(after["values"][name], value), name


# --- Inputs and targets ---------------------------------------------------------------------------


def test_sparse_inputs_are_those_of_the_model_pruned_so_far() -> None:
    model, batches = net(), data()
    dense = copy.deepcopy(model)
    sparsifier = Wanda("2:4")
    sparsifier.prepare(model)
    report = sparsifier.calibrate(batches)
    assert [layer.fqn for layer in report.layers] == ["0.weight", "2.weight", "4.weight"]
    sparsifier.squash_mask()
    x = torch.cat(batches)
    for index, result in zip((0, 2, 4), report.layers, strict=True):
        weight = dense[index].weight.detach()
        inputs = model[:index](x).detach()
        scores = weight.abs() * inputs.square().mean(dim=0).sqrt()
        # Norms within rounding of each other may rank two weights either way.
        mask = ops.select_masks([scores], "2:4", "row")[0]
        assert (mask == (model[index].weight != 0)).float().mean() > 0.99
        delta = (weight - model[index].weight.detach()).double()
        moved = (inputs.double() @ delta.T).square().sum()
        whole = (inputs.double() @ weight.double().T).square().sum()
        assert result.error == pytest.approx(float(moved / whole), rel=1e-4)
        assert result.tokens == 256
        assert result.zeros == 0.5


def test_dense_inputs_are_those_of_the_dense_model() -> None:
    model, batches = net(), data()
    dense = copy.deepcopy(model)
    sparsifier = Wanda("unstructured:0.5", target="dense-inputs")
    sparsifier.prepare(model)
    sparsifier.calibrate(batches)
    sparsifier.squash_mask()
    for index in (0, 2, 4):
        inputs = dense[:index](torch.cat(batches)).detach()
        scores = dense[index].weight.detach().abs() * inputs.square().mean(dim=0).sqrt()
        mask = ops.select_masks([scores], "unstructured:0.5", "row")[0]
        assert (mask == (model[index].weight != 0)).float().mean() > 0.99


def test_the_dense_target_is_met_as_well_as_least_squares_can() -> None:
    model, batches = net(), data(8)
    dense = copy.deepcopy(model)
    sparsifier = OneShot(
        "2:4", ByWanda(), LeastSquares(200, 1e-6), target="dense-target", damping=0
    )
    sparsifier.prepare(model)
    report = sparsifier.calibrate(batches)
    sparsifier.squash_mask()
    x = torch.cat(batches)
    for index, result in zip((0, 2, 4), report.layers, strict=True):
        inputs = model[:index](x).detach().double()
        wanted = dense[: index + 1](x).detach().double()
        if dense[index].bias is not None:
            wanted = wanted - dense[index].bias.detach()
        got = model[index].weight.detach()
        for row in range(len(got)):
            kept = got[row].nonzero().flatten()
            best = torch.linalg.lstsq(inputs[:, kept], wanted[:, row]).solution
            least = (inputs[:, kept] @ best - wanted[:, row]).square().sum()
            ours = (inputs[:, kept] @ got[row, kept].double() - wanted[:, row]).square().sum()
            assert ours <= least * 1.001 + 1e-6
        missed = (inputs @ got.double().T - wanted).square().sum() / wanted.square().sum()
        assert result.target_error == pytest.approx(float(missed), rel=1e-3)
    assert report.layers[0].target_error == pytest.approx(report.layers[0].error, rel=1e-4)


def test_targets_order_the_error_of_the_model() -> None:
    """The dense target makes up for the layers before; the last layer shows it."""
    torch.manual_seed(3)
    model, batches = net(), data(16)
    x = torch.cat(batches)
    want = model(x).detach()
    missed = {}
    for target in ("sparse-inputs", "dense-target"):
        pruned = copy.deepcopy(model)
        sparsifier = SparseGPT("unstructured:0.6", target=target)
        sparsifier.prepare(pruned)
        sparsifier.calibrate(batches)
        missed[target] = float((pruned(x).detach() - want).square().sum())
    assert missed["dense-target"] < 0.9 * missed["sparse-inputs"]


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (1, 3), "stride": (2, 1)},
    {"kernel_size": 3, "padding": 1, "dilation": 2},
    {"kernel_size": 3, "padding": "same", "groups": 2},
    {"kernel_size": 2, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "groups": 8, "padding_mode": "circular"},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_a_convolution_is_a_linear_layer_over_its_patches(settings: dict[str, Any]) -> None:
    layer = nn.Conv2d(8, 16, bias=False, **settings)
    x = torch.randn(3, 8, 9, 7)
    form = LayerForm.of(layer, layer.weight)
    weight = form.matrices(layer.weight.detach())
    rows = form.rows(layer, x)
    got = torch.cat(list(rows @ weight.mT), dim=-1)
    want = layer(x).detach().permute(0, 2, 3, 1).reshape(-1, 16)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(form.parameter(weight), layer.weight)
    assert torch.equal(form.rows(layer, x[0]), form.rows(layer, x[:1]))


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_pruned_along_input_channels(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=groups), nn.ReLU(), nn.Flatten())
    batches = [correlated(8 * 36, 8).view(8, 6, 6, 8).permute(0, 3, 1, 2) for _ in range(3)]
    want = model(batches[0]).detach()
    missed = []
    for sparsifier in (OneShot("2:4", ByMagnitude()), Best("2:4")):
        pruned = copy.deepcopy(model)
        sparsifier.prepare(pruned)
        sparsifier.calibrate(batches)
        sparsifier.squash_mask()
        by_tap = pruned[0].weight.detach().permute(2, 3, 0, 1).flatten(0, 2)
        assert ops.find_violation(by_tap.contiguous(), "2:4") == ""
        assert (pruned[0].weight == 0).float().mean() == 0.5
        missed.append(float((pruned(batches[0]).detach() - want).square().sum()))
    assert missed[1] < 0.8 * missed[0]


def test_three_input_channels_are_groups_of_three() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    for method in (SparseGPT, ALPS, Wanda):
        pruned = copy.deepcopy(model)
        sparsifier = method("2:4")
        sparsifier.prepare(pruned)
        sparsifier.calibrate([torch.randn(4, 3, 8, 8)])
        sparsifier.squash_mask()
        assert ((pruned[0].weight != 0).sum(dim=1) == 2).all()


# --- Methods --------------------------------------------------------------------------------------


def pruned_errors(model: nn.Module, batches: list[Tensor], sparsifier: OneShot) -> float:
    pruned = copy.deepcopy(model)
    sparsifier.prepare(pruned)
    return sparsifier.calibrate(batches).mean_error


@pytest.mark.parametrize("pattern", ["unstructured:0.5", "2:4", "4:8"])
def test_better_methods_have_lower_errors(pattern: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    batches = [correlated(1024, 64)]
    methods = {
        "magnitude": OneShot(pattern, ByMagnitude(), scope="row"),
        "wanda": Wanda(pattern),
        "sparsegpt": SparseGPT(pattern),
        "sparsegpt + ls": OneShot(pattern, ObsSweep(), LeastSquares()),
        "alps": ALPS(pattern),
    }
    errors = [pruned_errors(model, batches, method) for method in methods.values()]
    assert errors == sorted(errors, reverse=True), dict(zip(methods, errors, strict=True))


@pytest.mark.parametrize(
    "pattern",
    ["unstructured:0.7", "2:4", "1:8", "fanin:0.75", "block:4x4:0.5", "vnm:8:2:8"],
)
@pytest.mark.parametrize(
    "make",
    [
        Wanda,
        RIA,
        SparseGPT,
        ALPS,
        Best,
        lambda p: OneShot(p, ByObs(), LeastSquares(), target="dense-target"),
        lambda p: OneShot(p, ByWanda(), ObsSweep(16), scope="row"),
    ],
    ids=["Wanda", "RIA", "SparseGPT", "ALPS", "Best", "ByObs+LS", "ByWanda+sweep"],
)
def test_every_method_takes_every_pattern(make: Callable[[str], OneShot], pattern: str) -> None:
    model = net()
    sparsifier = make(pattern)
    sparsifier.prepare(model)
    report = sparsifier.calibrate(data())
    sparsifier.squash_mask()
    for index in (0, 2, 4):
        weight = model[index].weight.detach()
        assert ops.find_violation(weight, pattern) == ""
        zeros = float((weight == 0).float().mean())
        assert zeros == pytest.approx(gs.prune.pattern.parse_pattern(pattern).sparsity, abs=0.02)
    assert 0 < report.mean_error < 1


def test_a_method_of_ones_own() -> None:
    class ByVariance(Score):
        def score(self, problem: LayerProblem) -> Tensor:
            return problem.weight.abs() * problem.norms**2

    class Band:
        def select(self, scores: Tensor) -> Tensor:
            rows, cols = scores.shape[-2:]
            place = torch.arange(rows)[:, None] / rows - torch.arange(cols) / cols
            return (place.abs() < 0.3).expand(scores.shape)

        def __str__(self) -> str:
            return "band"

    model = net()
    sparsifier = OneShot(Band(), ByVariance(), LeastSquares(), target="dense-target")
    sparsifier.prepare(model)
    report = sparsifier.calibrate(data())
    assert report.layers[0].pattern == "band"
    want = Band().select(torch.zeros(32, 16))
    assert torch.equal(model[0].weight != 0, want)


def test_chance_is_the_floor_of_scores() -> None:
    dense, batches, errors = net(), data(), {}
    for name, score in (("chance", ByRandom()), ("again", ByRandom()), ("wanda", ByWanda())):
        model = copy.deepcopy(dense)
        method = OneShot("unstructured:0.5", score, scope="columns:8")
        method.prepare(model)
        errors[name] = method.calibrate(batches).mean_error
    assert errors["chance"] == errors["again"]
    assert errors["wanda"] < 0.7 * errors["chance"]


def test_a_sweep_takes_its_blocks_from_the_scope() -> None:
    dense, batches, masks = net(), data(), []
    for scope, block in (("columns:8", 128), ("tensor", 8)):
        model = copy.deepcopy(dense)
        method = OneShot("unstructured:0.5", ObsSweep(block), scope=scope)
        method.prepare(model)
        method.calibrate(batches)
        masks.append([method.mask(group) for group in method.groups])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
    with pytest.raises(ValueError, match="Admm: scope 'columns:8': 'row' or 'tensor'"):
        ALPS("unstructured:0.5", scope="columns:8")
    method = OneShot(Stripes(), ByWanda(), scope="columns:8")
    fails(net(), method, data(), "'0.weight': scope 'columns:8': pattern stripes is an object")


def test_swap_lowers_the_error_of_wanda_by_more_than_half() -> None:
    model, batches = nn.Sequential(nn.Linear(64, 32)), [correlated(2048, 64)]
    wanda = pruned_errors(model, batches, Wanda("unstructured:0.5"))
    swapped = pruned_errors(
        model, batches, OneShot("unstructured:0.5", ByWanda(), Swap(), scope="row")
    )
    assert swapped < 0.45 * wanda


# --- The contract ---------------------------------------------------------------------------------


def test_masks_stay_live_and_the_model_keeps_its_mode() -> None:
    model = net().train()
    model[1].eval()
    before = [module.training for module in model.modules()]
    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(model, {"0": "2:4", "2": "unstructured:0.25"})
    seen: list[tuple[str, int, int]] = []

    def progress(result: LayerResult, number: int, count: int) -> None:
        seen.append((result.fqn, number, count))

    report = sparsifier.calibrate(iter(data()), progress=progress)
    assert sparsifier.report is report
    assert seen == [("0.weight", 1, 2), ("2.weight", 2, 2)]
    assert [m.training for m in model.modules() if type(m) is not gs.prune.Mask][:1] == before[:1]
    assert model.training
    assert not model[1].training
    assert sparsifier.step_count == 1
    assert all(p.grad is None for p in model.parameters())
    kept = (model[2].weight != 0).sum()
    model(data()[0]).sum().backward()
    sparsifier.step()
    assert (model[2].weight != 0).sum() == kept == 0.75 * 24 * 32
    assert "0.weight" in str(report)
    assert "mean error" in str(report)
    assert report.left_dense == {"4.weight": "not chosen"}


def test_methods_that_correct_nothing_keep_the_dense_weight_under_the_mask() -> None:
    model = net()
    dense = copy.deepcopy(model)
    sparsifier = RIA("2:4")
    sparsifier.prepare(model)
    sparsifier.calibrate(data())
    original = model[0].parametrizations.weight.original
    assert torch.equal(original, dense[0].weight)
    assert (model[0].weight == 0).float().mean() == 0.5


class Attention(nn.Module):
    """Three layers with one input, one called by keyword, one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(input=x))
        return self.out(self.out(y) + x)


def test_layers_with_one_input_share_a_pass_and_calls_add_up() -> None:
    model = Attention()
    batches = [torch.randn(4, 8, 16) for _ in range(3)]
    passes = 0

    def forward(model: nn.Module, batch: Tensor) -> Any:
        nonlocal passes
        passes += 1
        return model(batch)

    sparsifier = ALPS("2:4", target="dense-target")
    sparsifier.prepare(model)
    report = sparsifier.calibrate(batches, forward=forward)
    assert [layer.fqn[0] for layer in report.layers] == ["q", "k", "v", "o"]
    assert [layer.tokens for layer in report.layers] == [96, 96, 96, 192]
    assert passes == 3 + 2 * 3 * 2  # To see the order; then q, k, v together, and out; both models.


def test_batches_are_called_by_name_or_in_order() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(a + 2 * b)

    a, b = torch.randn(32, 8), torch.randn(32, 8)
    errors = []
    for batch in ({"b": b, "a": a}, (a, b), [a, b]):
        torch.manual_seed(0)
        errors.append(pruned_errors(Sum(), [batch], Wanda("2:4")))  # type: ignore[list-item]
    assert errors[0] == errors[1] == errors[2]


def test_bfloat16_models_stay_bfloat16() -> None:
    model = net().bfloat16()
    sparsifier = Best("2:4")
    sparsifier.prepare(model)
    sparsifier.calibrate([x.bfloat16() for x in data()])
    sparsifier.squash_mask()
    assert model[2].weight.dtype == torch.bfloat16
    assert ops.find_violation(model[2].weight.detach(), "2:4") == ""


# --- Bad input ------------------------------------------------------------------------------------


class Fork(nn.Module):
    """Has a layer that is called only for long batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.rare(y) if len(x) > 100 else y


def fails(model: nn.Module, sparsifier: OneShot, batches: Any, match: str) -> None:
    sparsifier.prepare(model)
    before = state_of(model)
    with pytest.raises((ValueError, RuntimeError), match=match):
        sparsifier.calibrate(batches)
    assert_same(model, before)
    assert sparsifier.step_count == 0


def test_an_empty_loader() -> None:
    fails(net(), SparseGPT("2:4"), [], "no batches")


def test_a_layer_that_no_batch_reaches() -> None:
    fails(Fork(), SparseGPT("2:4"), [torch.randn(50, 8)], "no batch reaches 'rare.weight'")
    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(Fork())
    report = sparsifier.calibrate([torch.randn(50, 8), torch.randn(101, 8)])
    assert [layer.tokens for layer in report.layers] == [151, 101]


def test_inputs_that_are_not_finite() -> None:
    batches = data()
    batches[2][3, 4] = torch.nan
    fails(net(), Wanda("2:4"), batches, "'0.weight': its inputs hold NaN or infinity in batch 2")


def test_a_model_that_moves_between_devices_halfway() -> None:
    model, batches = net(), data()
    passes = 0

    def forward(own: nn.Module, x: Tensor) -> Any:
        nonlocal passes
        passes += 1
        # One pass over the batches finds the order of the layers, the second one sees inputs.
        return own(x.to("meta") if passes > len(batches) + 2 else x)

    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(model)
    before = state_of(model)
    with pytest.raises(
        ValueError, match=r"'0\.weight': its inputs are on meta, its weight was on cpu"
    ):
        sparsifier.calibrate(batches, forward=forward)
    assert_same(model, before)
    assert sparsifier.step_count == 0


def test_a_config_with_a_layer_that_is_not_there() -> None:
    model = net()
    before = state_of(model)
    with pytest.raises(
        ValueError, match=r"no parameter '2\.wieght'; the nearest names are '2\.weight'"
    ):
        SparseGPT("2:4").prepare(model, [{"tensor_fqn": "2.wieght"}])
    assert_same(model, before)


@pytest.mark.parametrize("make", [Wanda, SparseGPT])
@pytest.mark.parametrize("pattern", ["block:64x64:0.8", "unstructured:0.999"])
def test_a_pattern_that_is_too_coarse_for_a_layer(
    pattern: str, make: Callable[..., OneShot]
) -> None:
    """Rounded to whole blocks, or whole weights of a row, it would switch the layer off."""
    model = net()
    before = state_of(model)
    match = (
        rf"'0.weight': pattern {pattern} keeps nothing of a weight \[32, 16\]; .* leave it dense"
    )
    with pytest.raises(ValueError, match=match):
        make(pattern, scope="row").prepare(model)
    assert_same(model, before)


def test_a_pattern_of_ones_own_that_keeps_nothing() -> None:
    class Nothing:
        def __str__(self) -> str:
            return "nothing"

        def select(self, scores: Tensor) -> Tensor:
            return torch.zeros_like(scores, dtype=torch.bool)

    match = r"'0.weight': pattern nothing keeps nothing of a weight \[32, 16\]"
    fails(net(), Wanda(Nothing(), scope="tensor"), data(), match)


def test_a_pattern_of_nothing_keeps_nothing() -> None:
    assert pruned_errors(net(), data(), Wanda("unstructured:1.0")) == 1.0


def test_weights_that_are_not_finite() -> None:
    model = net()
    method = SparseGPT("2:4")
    method.prepare(model)
    with torch.no_grad():
        method.dense_weight(method.groups[1])[3, 1] = torch.inf
    before = state_of(model)
    with pytest.raises(ValueError, match=r"'2.weight' holds NaN or infinity.* leave it dense"):
        method.calibrate(data())
    assert_same(model, before)


def test_batches_without_samples() -> None:
    fails(net(), SparseGPT("2:4"), [torch.randn(0, 16)], r"'0.weight': it was called with no inp")


def test_inputs_that_are_all_zero() -> None:
    fails(net(), Wanda("2:4"), [torch.zeros(4, 16)], "all of its 4 inputs are zero")


def test_an_error_in_the_last_layer_undoes_the_first() -> None:
    def explode(problem: LayerProblem) -> None:
        if problem.fqn == "4.weight":
            raise RuntimeError("it went wrong")

    fails(net(), OneShot("2:4", ByMagnitude(), LeastSquares(), explode), data(), "it went wrong")


def test_a_singular_gram_matrix_is_damped_and_that_is_reported() -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    sparsifier = SparseGPT("2:4", damping=0)
    sparsifier.prepare(model)
    report = sparsifier.calibrate([torch.randn(5, 16)])
    assert report.layers[0].asked_damping == 0
    assert 1e-6 <= report.layers[0].damping <= 1e-3
    assert "damping raised from 0 to" in str(report)


def test_a_matrix_that_no_damping_saves_is_refused() -> None:
    gram = -torch.eye(4, dtype=torch.float64)[None]
    problem = LayerProblem("layer", torch.randn(1, 2, 4), gram, "2:4", damping=0.01, tokens=7)
    with pytest.raises(
        ValueError, match=r"'layer': .*not positive definite.* 7 tokens for 4 inputs"
    ):
        problem.factor()
    assert problem.damping <= 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SparseGPT("2:4", scope="global"), "'row' or 'tensor' is accepted"),
        (lambda: SparseGPT("2:4", target="dense"), "target 'dense': one of"),
        (lambda: SparseGPT("2:4", damping=-1), "damping -1: a number from 0 to 1"),
        (lambda: SparseGPT("2:5"), "2:5"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], OneShot], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_calls_in_the_wrong_order() -> None:
    sparsifier = SparseGPT("2:4")
    with pytest.raises(RuntimeError, match="call prepare"):
        sparsifier.calibrate(data())
    sparsifier.prepare(net())
    with pytest.raises(RuntimeError, match=r"call calibrate\(batches\) first"):
        sparsifier.step()
    with pytest.raises(NotImplementedError, match="has no parts"):
        pruned_errors(net(), data(), OneShot("2:4"))
    with pytest.raises(ValueError, match="no part before it selected a mask"):
        pruned_errors(net(), data(), OneShot("2:4", LeastSquares()))
    with pytest.raises(ValueError, match="swaps keep unstructured"):
        pruned_errors(net(), data(), OneShot("block:4x4:0.5", ByWanda(), Swap()))


def test_layers_without_rows_of_inputs_are_refused() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 3))
    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    with pytest.raises(ValueError, match=r"'0.weight' is the weight of a \w*Conv1d"):
        sparsifier.calibrate([torch.randn(2, 4, 9)])


def test_admm_takes_a_pattern_of_ones_own() -> None:
    class EveryThird:
        def select(self, scores: Tensor) -> Tensor:
            return scores.argsort(-1).argsort(-1) % 3 == 0

    model = net()
    sparsifier = OneShot(EveryThird(), Admm(iterations=6))
    sparsifier.prepare(model)
    sparsifier.calibrate(data())
    sparsifier.squash_mask()
    kept = [(m.weight != 0).float().mean() for m in model.modules() if isinstance(m, nn.Linear)]
    assert all(0.3 < share < 0.4 for share in kept)


# --- What stays dense -----------------------------------------------------------------------------


class Language(nn.Module):
    """Tied embeddings, a head, and experts of which one is rarely asked."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor) -> Tensor:
        x = self.gate(self.tokens(ids)).sum() * 0 + self.tokens(ids)
        y = self.experts[0](x)
        rare = ids == 7
        if bool(rare.any()):
            y[rare] = self.experts[1](x[rare])
        return self.head(y)


@pytest.mark.parametrize("tied", [False, True])
def test_the_report_says_what_stays_dense_and_why(tied: bool) -> None:
    model = Language(tied)
    before = {name: value.clone() for name, value in model.named_parameters()}
    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(model)
    batches = [torch.randint(8, 20, (4, 16)) for _ in range(4)]
    batches[1][2, :5] = 7
    report = sparsifier.calibrate(batches)
    sparsifier.squash_mask()
    assert [layer.fqn for layer in report.layers] == ["experts.0.weight"]
    assert report.left_dense["gate.weight"] == "routes tokens to experts"
    assert "saw 5 inputs of 8" in report.left_dense["experts.1.weight"]
    assert report.left_dense["tokens.weight"] == "an embedding"
    if not tied:
        assert report.left_dense["head.weight"] == "gives the logits"
    assert "dense: an embedding" in str(report)
    after = dict(model.named_parameters())
    for name in ("tokens.weight", "experts.1.weight", "gate.weight"):
        assert torch.equal(after[name], before[name]), name


def test_an_expert_that_saw_enough_is_pruned() -> None:
    model = Language(tied=False)
    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(model, {"head": "2:4", "experts.*": "2:4"})
    batches = [torch.randint(8, 20, (4, 16)) for _ in range(4)]
    batches[1][:] = 7
    report = sparsifier.calibrate(batches)
    assert [layer.tokens for layer in report.layers] == [256, 64, 256]
    assert report.left_dense["gate.weight"] == "routes tokens to experts"
    sparsifier = SparseGPT("2:4")
    sparsifier.prepare(Language(tied=False), {"experts.0": "2:4"})
    assert sparsifier.calibrate(batches).left_dense["experts.1.weight"] == "not chosen"


# --- BatchNorm ------------------------------------------------------------------------------------


def test_batchnorm_is_recalibrated_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train()
    model[2].eval()
    batches = [torch.randn(50, 6) * 3 + 1 for _ in range(4)]
    assert gs.prune.recalibrate_batchnorm(model, iter(batches)) is model
    hidden = [model[0](x).detach() for x in batches]
    want = torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0)
    torch.testing.assert_close(model[1].running_mean, want)
    want = torch.stack([h.var(dim=0) for h in hidden]).mean(dim=0)
    torch.testing.assert_close(model[1].running_var, want)
    assert model[1].momentum == 0.1
    assert [module.training for module in model] == [True, True, False, True]


def test_batchnorm_stays_as_it_was_where_recalibration_fails() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    model[1].running_mean += 5
    before = state_of(model)
    for batches, match in (([], "no batches"), ([torch.randn(9, 6), torch.randn(9, 5)], "shape")):
        with pytest.raises((ValueError, RuntimeError), match=match):
            gs.prune.recalibrate_batchnorm(model, batches)
        assert_same(model, before)
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        gs.prune.recalibrate_batchnorm(nn.Linear(2, 2), [torch.randn(3, 2)])


def test_progress_is_a_line_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    sparsifier = Wanda("2:4")
    sparsifier.prepare(net())
    sparsifier.calibrate(data(), progress=gs.prune.show_progress)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("[####################] 3/3  4.weight: error 0.")
