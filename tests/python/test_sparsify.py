# SPDX-License-Identifier: BSD-3-Clause
"""sparsify_ and desparsify_ on whole models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import gossamer as gs
from sparsify_helpers import GENERIC, VERY_SPARSE, Conv1D, close, is_packed, mlp, prune_, reason_of

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
            lambda m: gs.sparsify_(m, memory="tiny"),
            ValueError,
            'memory=\'tiny\': "default", "speed" and "low" are accepted',
        ),
        (lambda m: gs.sparsify_(m, "3:5x"), ValueError, "pattern '3:5x'"),
        (lambda m: gs.sparsify_(m, 7), TypeError, "config is 7"),
        (lambda m: gs.sparsify_(m, gs.SemiSparseWeightConfig), TypeError, "with parentheses"),
        (lambda m: gs.sparsify_(m, layout="zigzag"), ValueError, "layout 'zigzag'"),
        (lambda m: gs.sparsify_(m.state_dict()), TypeError, "an nn.Module is accepted"),
        (lambda m: gs.SemiSparseWeightConfig(alg_id=3), ValueError, "alg_id=3"),
        (lambda m: gs.SparseConfig(memory="tiny"), ValueError, "memory='tiny'"),
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
    assert len(report.plan) == 8
    assert [bucket.tokens for bucket in report.plan][:4] == ["1", "2–4", "5–8", "9–32"]


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


def test_a_filter_of_one_argument_is_refused_with_the_remedy() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(TypeError, match=r"filter_fn cannot be called .* give it two parameters"):
        gs.sparsify_(model, filter_fn=lambda module: True)  # type: ignore[arg-type,misc]

    def broken(module: nn.Module, name: str) -> bool:
        raise TypeError("its own")

    with pytest.raises(TypeError, match="its own"):
        gs.sparsify_(model, filter_fn=broken)
