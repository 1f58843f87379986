# SPDX-License-Identifier: BSD-3-Clause
"""What sparsify_ leaves plain, and the reason it gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import gossamer as gs
from sparsify_helpers import GENERIC, Conv1D, close, is_packed, mlp, prune_, reason_of

# --- What stays plain, and why --------------------------------------------------------------------


def test_weights_without_zeros_stay_plain() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    prune_(model[1].weight, "unstructured:0.2")
    gs.sparsify_(model, layout=GENERIC)
    assert reason_of(model, "0") == "not sparse: 0.0% of the weights are zero, under 25%"
    assert reason_of(model, "1") == "not sparse: 20.0% of the weights are zero, under 25%"
    gs.sparsify_(model, {"1": "unstructured"}, layout=GENERIC)
    assert gs.explain(model)["1"].packed


def test_tiny_layers_stay_plain_because_dense_wins() -> None:
    layer = nn.Linear(8, 8)
    prune_(layer.weight, "unstructured:0.5")
    before = layer.weight
    gs.sparsify_(layer, plan="model")
    assert layer.weight is before
    assert before.requires_grad
    report = gs.explain(layer)[""]
    assert "dense" in report.reason
    assert report.kernel == "dense"
    assert report.plan
    assert all(bucket.kernel == "dense" for bucket in report.plan)


def test_filter_fn_selects() -> None:
    model = mlp()
    seen: list[str] = []

    def only_first(module: nn.Module, name: str) -> bool:
        seen.append(name)
        return name == "0"

    gs.sparsify_(model, filter_fn=only_first, layout=GENERIC)
    assert seen == ["0", "2"]
    assert is_packed(model[0])
    assert reason_of(model, "2") == "not selected by filter_fn"


def test_layers_that_were_never_looked_at() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.Embedding(4, 8))
    assert reason_of(model, "2") == "not sparsified"
    assert reason_of(model, "0") == "Conv1d is not a linear layer"
    assert reason_of(model, "3") == "Embedding is not a linear layer"


def test_conv_then_linear() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 64))
    prune_(model[3].weight)
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    gs.sparsify_(model, layout=GENERIC)
    assert is_packed(model[3])
    assert type(model[0].weight) is nn.Parameter
    close(model(x), plain, x)


def test_multihead_attention_stays_plain_and_works() -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    prune_(attention.in_proj_weight)
    prune_(attention.out_proj.weight)
    model = nn.ModuleDict({"attention": attention})
    x = torch.randn(2, 5, 32)
    want = attention(x, x, x)[0]
    gs.sparsify_(model, layout=GENERIC)
    assert "reads in_proj_weight itself" in reason_of(model, "attention.in_proj_weight")
    assert "'attention' reads out_proj.weight itself" in reason_of(model, "attention.out_proj")
    assert torch.equal(attention(x, x, x)[0], want)
    attention.eval()
    with torch.inference_mode():
        torch.testing.assert_close(attention(x, x, x)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_transformer_encoder(stack: bool, mode: type, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    prune_(layer.linear1.weight)
    prune_(layer.linear2.weight)
    model: nn.Module = nn.TransformerEncoder(layer, 2) if stack else layer
    model.train(training)
    plain, x = copy.deepcopy(model), torch.randn(2, 5, 32)
    gs.sparsify_(model, layout=GENERIC)
    assert sum(report.packed for report in gs.explain(model)) == (4 if stack else 2)
    with mode():
        got = model(x)
    close(got.clone(), plain, x)


def test_tied_linear_layers_are_packed_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64, bias=False))
    model[2].weight = model[0].weight
    prune_(model[0].weight)
    plain, x = copy.deepcopy(model), torch.randn(3, 64)
    gs.sparsify_(model, layout=GENERIC)
    assert is_packed(model[0])
    assert model[2].weight is model[0].weight
    assert "shared with 2" in gs.explain(model)["0"].reason
    close(model(x), plain, x)
    gs.desparsify_(model)
    assert model[2].weight is model[0].weight
    assert torch.equal(model[0].weight, plain[0].weight)


def test_a_weight_tied_to_an_embedding_stays_plain() -> None:
    model = nn.ModuleDict({"wte": nn.Embedding(50, 32), "head": nn.Linear(32, 50, bias=False)})
    model["head"].weight = model["wte"].weight
    prune_(model["head"].weight)
    gs.sparsify_(model, layout=GENERIC)
    assert model["head"].weight is model["wte"].weight
    assert "shared with 'wte' (Embedding)" in reason_of(model, "head")


def test_a_tied_layer_that_is_filtered_out_keeps_both_plain() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    prune_(model[0].weight)
    gs.sparsify_(model, filter_fn=lambda module, name: name == "0", layout=GENERIC)
    assert model[1].weight is model[0].weight
    assert "shared with '1', which stays plain" in reason_of(model, "0")


def test_tied_layers_with_different_configs_are_refused() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    prune_(model[0].weight, "2:4")
    with pytest.raises(ValueError, match="'0' and '1' share one weight"):
        gs.sparsify_(model, {"0": "2:4", "1": "unstructured"})
    assert type(model[0].weight) is nn.Parameter


class Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def test_live_masks_stay_plain_with_the_remedy() -> None:
    layer = nn.Linear(64, 64)
    parametrize.register_parametrization(layer, "weight", Masked(torch.rand(64, 64) < 0.1))
    x = torch.randn(3, 64)
    want = layer(x)
    gs.sparsify_(layer, layout=GENERIC)
    assert "squash_mask()" in reason_of(layer, "")
    assert torch.equal(layer(x), want)


def test_a_masked_conv1d_of_gpt2_is_a_linear_layer_with_a_live_mask() -> None:
    model = nn.Sequential(Conv1D(96, 64))
    pruner = gs.Magnitude("2:4")
    pruner.prepare(model)
    pruner.step()
    gs.sparsify_(model, layout=GENERIC)
    report = gs.explain(model)["0"]
    assert report.type == "Conv1D"
    assert not report.packed
    assert "its mask is live (Mask): call squash_mask()" in report.reason
    pruner.squash_mask()
    gs.sparsify_(model, layout=GENERIC)
    assert is_packed(model[0])
    assert model[0].weight.transposed


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_stay_plain_with_the_remedy() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    nn.utils.weight_norm(model[0])
    nn.utils.parametrizations.weight_norm(model[1])
    prune.l1_unstructured(model[2], "weight", 0.9)
    nn.utils.spectral_norm(model[3])
    x = torch.randn(2, 16)
    model.eval()
    want = model(x)
    gs.sparsify_(model, layout=GENERIC)
    assert "remove_weight_norm" in reason_of(model, "0")
    assert "remove_parametrizations" in reason_of(model, "1")
    assert "prune.remove" in reason_of(model, "2")
    assert "remove_spectral_norm" in reason_of(model, "3")
    assert torch.equal(model(x), want)


class Lora(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(64, 4, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


def test_other_people_s_layers_stay_plain() -> None:
    replaced = nn.Linear(64, 64)
    replaced.forward = lambda x: x @ replaced.weight.t()  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {"lora": Lora(nn.Linear(64, 64)), "own": OwnForward(64, 64), "set": replaced}
    )
    for parameter in model.parameters():
        if parameter.dim() == 2:
            prune_(parameter)
    gs.sparsify_(model, filter_fn=lambda module, name: "lora_A" not in name, layout=GENERIC)
    assert "LoRA adapter 'lora'" in reason_of(model, "lora.base_layer")
    assert "OwnForward has a forward of its own" in reason_of(model, "own")
    assert "forward was replaced" in reason_of(model, "set")


def test_weights_without_values_or_kernels_stay_plain() -> None:
    model = nn.ModuleDict(
        {
            "meta": nn.Linear(8, 8, device="meta"),
            "lazy": nn.LazyLinear(8),
            "complex": nn.Linear(8, 8, dtype=torch.complex64),
            "empty": nn.Linear(0, 8),
        }
    )
    gs.sparsify_(model, layout=GENERIC)
    assert "meta device" in reason_of(model, "meta")
    assert "no shape yet" in reason_of(model, "lazy")
    assert "complex64" in reason_of(model, "complex")
    assert "empty" in reason_of(model, "empty")
