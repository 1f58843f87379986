# SPDX-License-Identifier: BSD-3-Clause
"""nn.MultiheadAttention, which reads the weight of its output layer without calling the layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

__all__ = ["inputs_of_output", "outputs_of_attention", "without_fused_attention"]


def outputs_of_attention(model: nn.Module) -> dict[int, nn.MultiheadAttention]:
    """The attention that each output layer belongs to, by the layer's `id`."""
    found = (module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    return {id(module.out_proj): module for module in found}


def inputs_of_output(
    attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """What one call of an attention multiplies by the weight of its output layer.

    That is what the attention gives with the identity for that weight, to the bit: other terms of
    the sums are zeros.

    Args:
        attention: in evaluation mode; not changed.
        args: of the call.
        kwargs: of the call.

    Returns:
        [..., embed_dim], in the order of the attention's outputs.
    """
    layer = attention.out_proj
    weight: Tensor = layer.weight
    identity = torch.eye(layer.out_features, dtype=weight.dtype, device=weight.device)
    own = {"out_proj.weight": identity}
    if parametrize.is_parametrized(layer, "weight"):
        place = "out_proj.parametrizations.weight"
        kept = torch.ones_like(weight, dtype=torch.bool)
        own = {f"{place}.original": identity, f"{place}.0.mask": kept}
    if layer.bias is not None:
        own["out_proj.bias"] = torch.zeros_like(layer.bias)
    output: Tensor = functional_call(attention, own, args, kwargs)[0]
    return output


@contextlib.contextmanager
def without_fused_attention() -> Iterator[None]:
    """Attention and encoder layers of torch.nn call their parts one by one meanwhile."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
