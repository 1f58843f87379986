# SPDX-License-Identifier: BSD-3-Clause
"""What a model is called with, and layers whose inputs are seen nowhere but inside attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gossamer.prune import (
    Best,
    ByWanda,
    LayerProblem,
    LeastSquares,
    Magnitude,
    OneShot,
    SparseGPT,
    Wanda,
    measure_sensitivity,
    owl,
    recalibrate_batchnorm,
    save_statistics,
)
from prune_helpers import assert_same, data, net, snapshot

# --- Batches --------------------------------------------------------------------------------------


def calibrated(batches: Any) -> None:
    model, method = net(), Wanda("2:4")
    method.prepare(model)
    before = snapshot(model)
    try:
        method.calibrate(batches)
    finally:
        assert_same(model, before)


def with_norms(batches: Any) -> None:
    recalibrate_batchnorm(nn.Sequential(nn.BatchNorm1d(16)), batches)


CALLERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("calibrate", calibrated),
    ("owl", lambda batches: owl(net(), "unstructured:0.5", batches)),
    ("save_statistics", lambda batches: save_statistics(net(), batches, "/nonexistent/stats")),
    ("recalibrate_batchnorm", with_norms),
]


@pytest.mark.parametrize("one", [torch.randn(24, 16), {"input": torch.randn(24, 16)}, "batch", 3])
@pytest.mark.parametrize(("name", "call"), CALLERS)
def test_a_single_batch_is_not_taken_for_many(
    name: str, call: Callable[[Any], Any], one: Any
) -> None:
    kind = type(one).__name__
    with pytest.raises(TypeError, match=rf"{name}: batches is a {kind}: .*pass \[batch\]"):
        call(one)


@pytest.mark.parametrize(("name", "call"), CALLERS)
def test_labels_beside_inputs(name: str, call: Callable[[Any], Any]) -> None:
    loader = DataLoader(TensorDataset(torch.randn(24, 16), torch.zeros(24)), 8)
    with pytest.raises(TypeError, match=r"2 items of a list; .*forward=lambda model, batch: mod"):
        call(loader)
    named = [{"x": torch.randn(24, 16), "labels": torch.zeros(24)}]
    with pytest.raises(TypeError, match=r"called by name with x, labels; "):
        call(named)


def test_labels_are_left_out_as_the_message_says() -> None:
    x = torch.cat(data())
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), 24)
    model, method = net(), Wanda("2:4")
    method.prepare(model)
    report = method.calibrate(loader, forward=lambda model, batch: model(batch[0]))
    assert report.layers[0].tokens == len(x)


def test_datasets_of_batches() -> None:
    class Held:
        """Has the two methods that torch asks of a dataset, and no __iter__."""

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Tensor:
            return data()[index]

    model, method = net(), Wanda("2:4")
    method.prepare(model)
    assert method.calibrate(Held()).layers[0].tokens == 4 * 24


def test_an_error_of_the_model_itself_stays_what_it_was() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("it went wrong")

    method = Wanda("2:4")
    method.prepare(nn.Sequential(Broken(16, 16)))
    with pytest.raises(TypeError, match=r"^it went wrong$"):
        method.calibrate(data())


# --- torch.inference_mode -------------------------------------------------------------------------


def pruned(batches: list[Tensor], *, inference: bool) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    method = Best("2:4")
    with torch.inference_mode(inference):
        method.prepare(model)
        method.calibrate(batches)
        method.squash_mask()
    return model


def test_calibration_in_inference_mode_gives_weights_that_train() -> None:
    want = pruned(data(), inference=False)
    with torch.inference_mode():
        batches = [x + 0 for x in data()]
    assert batches[0].is_inference()
    for model in (pruned(batches, inference=False), pruned(batches, inference=True)):
        assert torch.equal(model[0].weight, want[0].weight)
        assert torch.equal(model[2].weight, want[2].weight)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(data()[0]).square().mean().backward()
        optimizer.step()
        assert not torch.equal(model[0].weight, want[0].weight)


def test_a_model_that_runs_in_inference_mode_by_itself() -> None:
    class Served(nn.Sequential):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)]
    plain, served = nn.Sequential(*layers), Served(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    served.load_state_dict(plain.state_dict())
    for model in (plain, served):
        method = SparseGPT("2:4")
        method.prepare(model)
        method.calibrate(data())
        method.squash_mask()
    assert torch.equal(plain[2].weight, served[2].weight)


# --- nn.MultiheadAttention ------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention from separate layers, with the weights of an nn.MultiheadAttention."""

    def __init__(self, other: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = other.num_heads
        self.inward = nn.Linear(other.embed_dim, 3 * other.embed_dim)
        self.outward = nn.Linear(other.embed_dim, other.embed_dim)
        self.inward.weight.data = other.in_proj_weight.detach().clone()
        self.inward.bias.data = other.in_proj_bias.detach().clone()
        self.outward.weight.data = other.out_proj.weight.detach().clone()
        self.outward.bias.data = other.out_proj.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        joined = self.inward(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*joined)
        out: Tensor = self.outward(seen.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Itself(nn.Module):
    """Calls an attention with one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def test_the_output_of_attention_is_pruned_by_the_inputs_that_it_sees() -> None:
    torch.manual_seed(0)
    model = Itself()
    nn.init.normal_(model.attention.in_proj_bias)
    nn.init.normal_(model.attention.out_proj.bias)
    twin = Attention(model.attention)
    batches = [torch.randn(8, 12, 32) for _ in range(2)]
    torch.testing.assert_close(model(batches[0]), twin(batches[0]))
    found = []
    for net_, name in ((model, "attention.out_proj.weight"), (twin, "outward.weight")):
        method = SparseGPT("2:4")
        method.prepare(net_, {name: "2:4"})
        found.append((method.calibrate(batches), net_.get_parameter(f"{name[:-7]}.bias")))
        method.squash_mask()
    (mine, bias), (theirs, _) = found
    assert mine.layers[0].tokens == theirs.layers[0].tokens == 2 * 8 * 12
    assert mine.layers[0].error == pytest.approx(theirs.layers[0].error, rel=1e-4)
    kept, want = model.attention.out_proj.weight, twin.outward.weight
    assert torch.equal(kept == 0, want == 0)
    torch.testing.assert_close(kept, want, rtol=1e-3, atol=1e-5)
    assert torch.equal(bias, model.attention.out_proj.bias)
    assert "attention.in_proj_weight" in mine.left_dense


def test_hooks_on_an_attention_see_its_own_outputs_alone() -> None:
    torch.manual_seed(0)
    model, seen = Itself(), []
    model.attention.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    x = torch.randn(8, 12, 32)
    want = model(x)
    seen.clear()
    method = Wanda("2:4")
    method.prepare(model)
    method.calibrate([x])
    assert seen
    assert all(torch.equal(out, want) for out in seen)


def test_encoders_of_torch_are_pruned_block_by_block(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    batches = [torch.randn(4, 10, 32) for _ in range(4)]
    counts = save_statistics(model, batches, tmp_path / "stats.safetensors")
    assert counts["layers.1.self_attn.out_proj.weight"] == 4 * 4 * 10
    model.eval()
    dense = model(batches[0])
    before = torch.backends.mha.get_fastpath_enabled()
    method = Best("2:4")
    method.prepare(model)
    report = method.calibrate(batches)
    method.squash_mask()
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert len(report.layers) == 6
    assert [block.name for block in report.blocks] == ["layers.0", "layers.1"]
    assert F.mse_loss(model(batches[0]), dense) < 0.1 * dense.square().mean()


def test_a_layer_whose_weight_is_read_counts_as_not_called() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight)

    method = Wanda("2:4")
    method.prepare(Reads())
    with pytest.raises(ValueError, match=r"'layer.weight'; .* not where its weight is read"):
        method.calibrate(data())


def test_layers_that_calibration_does_not_know_are_reported() -> None:
    model = nn.Sequential(
        nn.Conv1d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1), nn.Bilinear(4, 4, 4), nn.LSTMCell(4, 4)
    )
    model.append(nn.Linear(4, 4))
    method = Wanda("2:4")
    method.prepare(model)
    report = method.calibrate([torch.randn(8, 4)], forward=lambda model, batch: model[4](batch))
    why = {name: reason.split(":")[0] for name, reason in report.left_dense.items()}
    assert why == {
        "0.weight": "of nn.Conv1d",
        "1.weight": "of nn.ConvTranspose2d",
        "2.weight": "of nn.Bilinear",
        "3.weight_ih": "of nn.LSTMCell",
        "3.weight_hh": "of nn.LSTMCell",
    }
    other = Wanda("2:4")
    other.prepare(nn.Sequential(nn.Conv1d(4, 4, 1)), {"0.weight": "2:4"})
    with pytest.raises(ValueError, match=r"is the weight of a Conv1d: calibration knows nn.Linear"):
        other.calibrate([torch.randn(8, 4, 4)])


# --- Accuracies and dead inputs -------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "good", torch.zeros(2), float("nan"), "nan"])
def test_an_accuracy_is_a_number(value: Any) -> None:
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"evaluate returned .*a number is accepted"):
        measure_sensitivity(model, lambda _: value)
    assert_same(model, before)


@pytest.mark.parametrize("when", ["evaluate", "batches", "nan", "step"])
def test_an_error_on_the_way_is_the_one_that_is_raised(when: str) -> None:
    calls = 0

    def evaluate(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if when == "evaluate" and calls == 3:
            raise KeyError("of evaluate")
        return float("nan") if when == "nan" and calls == 3 else 1.0

    class Fails(Magnitude):
        def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
            raise KeyError("of step")

    model = net()
    before = snapshot(model)
    batches = [torch.randn(4, 5)] if when == "batches" else data()
    what = {"evaluate": "of evaluate", "batches": "shapes", "nan": "returned nan", "step": "of st"}
    with pytest.raises((KeyError, RuntimeError, ValueError), match=what[when]):
        measure_sensitivity(
            model, evaluate, method=Fails if when == "step" else Wanda, batches=batches
        )
    assert_same(model, before)


@pytest.mark.parametrize("make", [Best, lambda p, **s: OneShot(p, ByWanda(), LeastSquares(), **s)])
def test_inputs_that_are_always_zero_are_damped_and_that_is_said(make: Any) -> None:
    x = data()
    for batch in x:
        batch[:, 5] = 0
    method = make("2:4", damping=0.0)
    model = net()
    method.prepare(model)
    report = method.calibrate(x)
    assert 0 < report.layers[0].damping <= 1e-3
    assert "damping raised from 0 to" in str(report)


def test_no_damping_saves_a_diagonal_below_zero() -> None:
    gram = -torch.eye(4, dtype=torch.float64)[None]
    for solve in (LayerProblem.eigen, LayerProblem.fit_damping):
        problem = LayerProblem("layer", torch.randn(1, 2, 4), gram, "2:4", damping=0.01, tokens=7)
        with pytest.raises(ValueError, match=r"'layer': .*not positive definite.* 7 tokens for 4"):
            solve(problem)


def test_a_layer_too_small_for_its_pattern_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    method = SparseGPT("2:4")
    method.prepare(model)
    report = method.calibrate([torch.randn(2, 4, 6, 6)])
    assert report.layers[1].remarks == ["so small that the pattern drops nothing"]
    assert report.layers[0].remarks == []
