# SPDX-License-Identifier: BSD-3-Clause
"""sparsify_, desparsify_ and explain on whole models."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import gossamer as gs
from gossamer.compat import torchao

GENERIC = "format"  # packs whatever dense would do, so that results do not hang on the machine

HEADINGS = ["layer", "type", "pattern", "kept", "size", "kernel", "speed-up"]
VERY_SPARSE = "unstructured:0.98"  # where every cost model finds a sparse kernel faster


def prune_(weight: Tensor, pattern: str = "unstructured:0.9", transposed: bool = False) -> Tensor:
    with torch.no_grad():
        logical = weight.mT if transposed else weight
        logical.mul_(torch.ops.gossamer.magnitude_mask(logical, pattern, "tensor"))
    return weight


def mlp(pattern: str = "unstructured:0.9", sizes: tuple[int, ...] = (64, 96, 32)) -> nn.Sequential:
    steps: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        prune_(linear.weight, pattern)
        steps += [linear, nn.ReLU()]
    return nn.Sequential(*steps[:-1])


class Conv1D(nn.Module):
    """The contract of Hugging Face's GPT-2 layer: x·W + b, W [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def close(got: Tensor, model: nn.Module, x: Tensor) -> None:
    """Equal to the float64 model up to f32 rounding, c·eps·sqrt(K) per layer and a few layers."""
    want = copy.deepcopy(model).double()(x.double())
    scale = want.abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * max(scale, 1.0))


def is_packed(module: nn.Module) -> bool:
    return isinstance(module.weight, gs.SparseWeight)


# --- What is packed -------------------------------------------------------------------------------


def test_returns_the_model_and_infers_each_pattern() -> None:
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    prune_(model[0].weight, "unstructured:0.9")
    prune_(model[2].weight, "2:4")
    plain = copy.deepcopy(model)
    x = torch.randn(3, 5, 64)
    assert gs.sparsify_(model, layout=GENERIC) is model
    assert model[0].weight.pattern.startswith("unstructured:0.9")
    assert model[2].weight.pattern == "2:4"
    assert type(model[4].weight) is nn.Parameter
    close(model(x), plain, x)
    for before, after in zip(plain, model, strict=True):
        if isinstance(after, nn.Linear) and is_packed(after):
            assert torch.equal(after.weight.to_dense(), before.weight)
            assert not after.weight.requires_grad


def test_a_single_linear_layer_is_a_model() -> None:
    layer = nn.Linear(64, 32, bias=False)
    prune_(layer.weight)
    plain, x = copy.deepcopy(layer), torch.randn(7, 64)
    assert gs.sparsify_(layer, layout=GENERIC) is layer
    assert is_packed(layer)
    close(layer(x), plain, x)
    assert gs.explain(layer)[""].packed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_dtype_is_packed_exactly(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 32, dtype=dtype)
    prune_(layer.weight)
    before = layer.weight.detach().clone()
    gs.sparsify_(layer, layout=GENERIC)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.weight.to_dense(), before)


def test_conv1d_of_gpt2() -> None:
    layer = Conv1D(96, 64)
    prune_(layer.weight, "2:4", transposed=True)
    model = nn.Sequential(layer)
    plain, x = copy.deepcopy(model), torch.randn(2, 5, 64)
    gs.sparsify_(model, layout=GENERIC)
    assert is_packed(layer)
    assert layer.weight.pattern == "2:4"
    assert tuple(layer.weight.shape) == (64, 96)
    assert torch.equal(layer.weight.to_dense(), plain[0].weight)
    close(model(x), plain, x)
    assert gs.explain(model)["0"].type == "Conv1D"


def test_conv1d_of_transformers() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer = utils.Conv1D(96, 64)
    prune_(layer.weight, transposed=True)
    plain, x = copy.deepcopy(layer), torch.randn(2, 5, 64)
    gs.sparsify_(layer, layout=GENERIC)
    assert is_packed(layer)
    close(layer(x), plain, x)


def test_gradients_reach_the_input_and_the_bias_but_not_the_weight() -> None:
    model = mlp()
    plain = copy.deepcopy(model)
    gs.sparsify_(model, layout=GENERIC)
    x = torch.randn(4, 64, requires_grad=True)
    x_plain = x.detach().clone().requires_grad_()
    model(x).square().sum().backward()
    plain(x_plain).square().sum().backward()
    torch.testing.assert_close(x.grad, x_plain.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0].bias.grad, plain[0].bias.grad, rtol=1e-4, atol=1e-4)
    assert model[0].weight.grad is None
    assert "frozen" in gs.explain(model)["0"].reason
    assert gs.explain(model)["0"].frozen


def test_a_second_call_changes_nothing() -> None:
    model = gs.sparsify_(mlp(), layout=GENERIC)
    weights = [layer.weight for layer in (model[0], model[2])]
    before = gs.explain(model).to_json()
    gs.sparsify_(model)
    assert [layer.weight for layer in (model[0], model[2])] == weights or all(
        a is b for a, b in zip((model[0].weight, model[2].weight), weights, strict=True)
    )
    assert gs.explain(model).to_json() == before


# --- What stays plain, and why --------------------------------------------------------------------


def reason_of(model: nn.Module, name: str) -> str:
    report = gs.explain(model)[name]
    assert not report.packed
    return report.reason


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
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.Embedding(4, 8))
    assert reason_of(model, "2") == "not sparsified"
    assert reason_of(model, "0") == "Conv2d is not a linear layer"
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


# --- Configs and refusals -------------------------------------------------------------------------


def test_configs_by_name() -> None:
    model = mlp("2:4", sizes=(64, 96, 64, 32))
    config = {"0": gs.SemiSparseWeightConfig(), "[12]": gs.SparseConfig("unstructured")}
    gs.sparsify_(model, config, layout=GENERIC)
    assert model[0].weight.pattern == "2:4"
    assert model[2].weight.pattern == "unstructured"
    assert reason_of(model, "4") == "no entry of config matches its name"


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'decoder\.\*' matches no linear layer.*0, 2"):
        gs.sparsify_(mlp(), {"decoder.*": "2:4"})


def test_a_broken_pattern_is_refused_and_the_model_is_as_it_was() -> None:
    model = mlp("2:4")
    with torch.no_grad():
        model[2].weight[17, 40:44] = torch.tensor([1.0, 2.0, 3.0, 0.0])
    before = {name: value for name, value in model.named_parameters()}
    with pytest.raises(
        ValueError, match=r"weight '2' row 17, columns 40–43: 3 non-zeros, 2:4 allows 2"
    ):
        gs.sparsify_(model, gs.SemiSparseWeightConfig(), layout=GENERIC)
    assert all(value is before[name] for name, value in model.named_parameters())
    assert not any(hasattr(module, "gossamer_report") for module in model.modules())


def test_block_config() -> None:
    layer = nn.Linear(128, 128)
    prune_(layer.weight, "block:32x32:0.5")
    gs.sparsify_(layer, gs.BlockSparseWeightConfig(blocksize=32), layout=GENERIC)
    assert layer.weight.layout_name == "bsr"
    assert layer.weight.density == 0.5


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda m: gs.sparsify_(m, plan="fast"),
            ValueError,
            'plan=\'fast\': "measure" and "model"',
        ),
        (
            lambda m: gs.sparsify_(m, memory="low"),
            ValueError,
            'memory=\'low\': "default" and "speed"',
        ),
        (lambda m: gs.sparsify_(m, "3:5x"), ValueError, "pattern '3:5x'"),
        (lambda m: gs.sparsify_(m, 7), TypeError, "config is 7"),
        (lambda m: gs.sparsify_(m, gs.SemiSparseWeightConfig), TypeError, "with parentheses"),
        (lambda m: gs.sparsify_(m, layout="zigzag"), ValueError, "layout 'zigzag'"),
        (lambda m: gs.sparsify_(m.state_dict()), TypeError, "an nn.Module is accepted"),
        (lambda m: gs.SemiSparseWeightConfig(alg_id=3), ValueError, "alg_id=3"),
        (lambda m: gs.SparseConfig(memory="low"), ValueError, "memory='low'"),
        (lambda m: gs.SparseConfig(pattern=24), TypeError, "pattern is a int"),
        (lambda m: gs.BlockSparseWeightConfig(0), ValueError, "block:0x0"),
    ],
)
def test_wrong_arguments(call: object, error: type[Exception], text: str) -> None:
    model = mlp()
    with pytest.raises(error) as caught:
        call(model)  # type: ignore[operator]
    assert text in str(caught.value)
    assert type(model[0].weight) is nn.Parameter


def test_plan_by_model_is_deterministic() -> None:
    model = mlp(sizes=(256, 512, 64))
    reports = [
        gs.explain(gs.sparsify_(copy.deepcopy(model), plan="model")).to_json() for _ in range(3)
    ]
    assert len(set(reports)) == 1


def test_measured_plan_is_kept_on_the_module() -> None:
    model = mlp(sizes=(256, 512))
    gs.sparsify_(model, plan="measure")
    report = gs.explain(model)["0"]
    assert report.reason
    assert len(report.plan) == 7
    assert [bucket.tokens for bucket in report.plan][:3] == ["1", "2–8", "9–32"]


def test_memory_speed_keeps_a_dense_copy_only_where_dense_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlp(sizes=(512, 512))
    gs.sparsify_(model, memory="speed", plan="model")
    report = gs.explain(model)["0"]
    assert report.packed
    runs_dense = any(bucket.kernel == "dense" for bucket in report.plan)
    assert (model[0].weight.dense is not None) == runs_dense


# --- What survives --------------------------------------------------------------------------------


def test_desparsify_is_exact_and_trainable_again() -> None:
    model = mlp()
    model[2].weight.requires_grad_(False)
    plain, x = copy.deepcopy(model), torch.randn(3, 64)
    assert gs.desparsify_(gs.sparsify_(model, layout=GENERIC)) is model
    for name, value in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), value)
    assert model[0].weight.requires_grad
    assert not model[2].weight.requires_grad
    assert reason_of(model, "0") == "not sparsified"
    assert torch.equal(model(x), plain(x))
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_deepcopy_pickle_and_state_dict(tmp_path: object) -> None:
    model = gs.sparsify_(mlp(), layout=GENERIC)
    x = torch.randn(3, 64)
    want, explained = model(x), gs.explain(model).to_json()
    twin = copy.deepcopy(model)
    assert twin[0].weight.packed.data_ptr() != model[0].weight.packed.data_ptr()
    for other in (twin, pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        assert gs.explain(other).to_json() == explained
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    fresh = gs.sparsify_(mlp(), layout=GENERIC)
    assert not torch.equal(fresh(x), want)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), want)


def test_torch_save_of_a_whole_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = gs.sparsify_(mlp(), layout=GENERIC)
    x = torch.randn(3, 64)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "model.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(state["0.weight"].to_dense(), model[0].weight.to_dense())
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(x), model(x))
    assert gs.explain(loaded).to_json() == gs.explain(model).to_json()


def test_a_weight_that_was_replaced_is_not_described_by_the_old_plan() -> None:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512)), plan="model")
    assert gs.explain(model)["0"].plan
    model[0].weight = nn.Parameter(
        gs.SparseWeight.from_dense(prune_(torch.randn(512, 512), "2:4")), requires_grad=False
    )
    report = gs.explain(model)["0"]
    assert report.pattern == "2:4"
    assert report.plan == ()
    model[0].weight = nn.Parameter(torch.randn(512, 512))
    assert "replaced by a plain one" in reason_of(model, "0")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    model = gs.sparsify_(mlp(), layout=GENERIC)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (3, 5):
        x = torch.randn(tokens, 64)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)


def test_export_with_dynamic_tokens() -> None:
    model = gs.sparsify_(mlp(), layout=GENERIC).eval()
    tokens = torch.export.Dim("tokens", min=2, max=512)
    program = torch.export.export(model, (torch.randn(3, 64),), dynamic_shapes=({0: tokens},))
    for count in (3, 17):
        x = torch.randn(count, 64)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


# --- explain --------------------------------------------------------------------------------------


def test_the_table_fits_and_names_every_layer() -> None:
    names = {"a_rather_long_name_of_a_block.with_a_sublayer" + str(i): None for i in range(2)}
    model = nn.Module()
    for name in names:
        layer = nn.Linear(512, 512)
        prune_(layer.weight, VERY_SPARSE)
        block = nn.Module()
        block.add_module(name.split(".")[1], layer)
        model.add_module(name.split(".")[0] + name[-1], block)
    gs.sparsify_(model, plan="model")
    text = str(gs.explain(model))
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0].split() == HEADINGS
    assert "2 of 2 weights packed" in text
    assert VERY_SPARSE in text


def test_json_and_lookup() -> None:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512, 10)), plan="model")
    explanation = gs.explain(model)
    rows = json.loads(explanation.to_json())
    assert [row["name"] for row in rows] == ["0", "2"] == [layer.name for layer in explanation]
    assert len(explanation) == 2
    first = explanation["0"]
    assert first.dense_bytes == 512 * 512 * 4
    assert first.packed_bytes == model[0].weight.packed_bytes < first.dense_bytes
    assert first.layout == model[0].weight.layout_name
    assert first.density == pytest.approx(0.02, abs=1e-3)
    assert first.kernel in [bucket.kernel for bucket in first.plan]
    assert first.speedup > 1
    with pytest.raises(KeyError, match="there are: 0, 2"):
        explanation["1"]


def test_rich_table() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(gs.explain(gs.sparsify_(mlp(), layout=GENERIC)))
    assert "2 of 2 weights packed" in console.export_text()


# --- The machine, the old names, the package ------------------------------------------------------


def test_machine_and_kernels() -> None:
    machine = gs.machine()
    assert set(machine.isa) <= set(machine.isa_detected)
    assert machine.cores >= 1
    rows = gs.kernels()
    assert [row.name for row in rows] == sorted(row.name for row in rows)
    assert any(row.runs_here for row in rows)
    assert all(set(row.needs) <= set(machine.isa) for row in rows if row.runs_here)


def test_names_of_torchao() -> None:
    assert torchao.semi_sparse_weight is gs.SemiSparseWeightConfig
    model = mlp("2:4")
    plain, x = copy.deepcopy(model), torch.randn(5, 64)
    returned = torchao.sparsify_(model, torchao.semi_sparse_weight())
    assert returned is model
    close(model(x), plain, x)
    block = nn.Linear(128, 128)
    prune_(block.weight, "block:64x64:0.5")
    plain_block, x = copy.deepcopy(block), torch.randn(2, 3, 128)
    torchao.sparsify_(block, torchao.block_sparse_weight(blocksize=64))
    close(block(x), plain_block, x)


def test_apply_fake_sparsity() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    before = copy.deepcopy(model)
    torchao.apply_fake_sparsity(model, filter_fn=lambda module, name: name == "0")
    want = before[0].weight * torch.ops.gossamer.magnitude_mask(
        before[0].weight.detach(), "2:4", "tensor"
    )
    assert torch.equal(model[0].weight, want)
    assert torch.equal(model[2].weight, before[2].weight)
    assert type(model[0]) is nn.Linear
    torchao.apply_fake_sparsity(model)
    assert model[2].weight.view(16, 8, 4).count_nonzero(-1).eq(2).all()


def test_every_public_name_exists() -> None:
    for name in gs.__all__:
        assert getattr(gs, name) is not None
    assert gs.__version__[0].isdigit()
