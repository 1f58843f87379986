# SPDX-License-Identifier: BSD-3-Clause
"""Language models of Hugging Face, with the defaults that they come with, block by block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.prune import Best, CalibrationReport, Reconstruction, SparseGPT, Wanda, owl

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install it")

SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}


def llama() -> nn.Module:
    model: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    return model


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4
    )
    model: nn.Module = transformers.T5ForConditionalGeneration(config)
    return model


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=4)
    model: nn.Module = transformers.MixtralForCausalLM(config)
    return model


BLOCKS = {
    llama: ["model.layers.0", "model.layers.1"],
    gpt2: ["transformer.h.0", "transformer.h.1"],
    t5: ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
}


def ids(model: nn.Module, count: int = 4) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    batches = []
    for _ in range(count):
        tokens = torch.randint(0, 64, (4, 16))
        batches.append({"input_ids": tokens})
        if hasattr(model, "decoder"):
            batches[-1]["decoder_input_ids"] = tokens
    return batches


def caches(model: nn.Module) -> list[bool]:
    found = []
    for module in model.modules():
        for name in ("config", "generation_config"):
            config = getattr(module, name, None)
            if hasattr(config, "use_cache"):
                found.append(config.use_cache)
    return found


def calibrated(model: nn.Module, **batch: Any) -> tuple[CalibrationReport, int]:
    passes = 0

    def forward(own: nn.Module, inputs: dict[str, Any]) -> Any:
        nonlocal passes
        passes += 1
        return own(**inputs, **batch)

    method = Best("2:4", reconstruction=Reconstruction(1))
    method.prepare(model)
    return method.calibrate(ids(model), forward=forward), passes


@pytest.mark.parametrize("make", BLOCKS)
def test_key_caches_cost_no_block(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    without = copy.deepcopy(model)
    for module in without.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False
    before = caches(model)
    assert any(before)
    report, passes = calibrated(model)
    assert caches(model) == before
    assert [block.name for block in report.blocks] == BLOCKS[make]
    assert report.not_alone == {}
    wanted, fewest = calibrated(without)
    assert passes == fewest
    for name, value in without.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert [layer.error for layer in report.layers] == [layer.error for layer in wanted.layers]


def test_a_cache_that_is_asked_for_is_reported() -> None:
    model = llama()
    report, _ = calibrated(model, use_cache=True)
    assert report.blocks == []
    assert list(report.not_alone) == BLOCKS[llama]
    why = report.not_alone["model.layers.1"]
    assert "'past_key_values' holds a DynamicCache, which cannot be passed twice" in why
    assert "not run by itself, nor tuned: its argument" in str(report)


def test_caches_come_back_where_calibration_fails() -> None:
    model = gpt2()
    before = caches(model)
    method = Wanda("2:4")
    method.prepare(model)
    with pytest.raises(IndexError):
        method.calibrate([{"input_ids": torch.full((1, 4), 64)}])
    assert caches(model) == before


def test_experts_of_mixtral() -> None:
    """Its routers stay dense; experts follow inputs that the pruned model gives them."""
    torch.manual_seed(0)
    model = mixtral()
    dense = copy.deepcopy(model)
    report, _ = calibrated(model)
    named = {layer.fqn: layer for layer in report.layers}
    experts = [fqn for fqn in named if ".experts." in fqn]
    others = [fqn for fqn in named if ".experts." not in fqn]
    assert len(experts) == 2 * 4 * 3
    assert len(others) == 2 * 4
    for fqn in experts:
        assert named[fqn].target_error is None
        assert named[fqn].remarks[0].startswith("sparse-inputs: the two models route other tokens")
    for fqn in others:
        assert named[fqn].target_error is not None
        assert named[fqn].remarks == []
    for index in range(2):
        gate = f"model.layers.{index}.block_sparse_moe.gate.weight"
        assert report.left_dense[gate] == "routes tokens to experts"
        assert torch.equal(model.state_dict()[gate], dense.state_dict()[gate])
    assert [block.name for block in report.blocks] == BLOCKS[llama]


def test_routers_are_left_out_by_distributions_too() -> None:
    model = mixtral()
    config = owl(model, "unstructured:0.5", ids(model))
    assert config
    assert not any("gate" in fqn for fqn in config)


def test_experts_that_saw_too_little_stay_dense() -> None:
    model = mixtral()
    method = SparseGPT("2:4")
    method.prepare(model)
    report = method.calibrate(ids(model, 1))  # 64 tokens, 2 of 4 experts each: about 32 an expert.
    experts = {layer.fqn: layer.tokens for layer in report.layers if ".experts." in layer.fqn}
    left = {fqn for fqn in report.left_dense if ".experts." in fqn}
    assert len(experts) + len(left) == 2 * 4 * 3
    assert left
    for fqn, tokens in experts.items():
        assert tokens >= (48 if ".w2." in fqn else 32)
    for fqn in left:
        assert "a router picks its inputs, and it saw" in report.left_dense[fqn]
