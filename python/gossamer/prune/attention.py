# SPDX-License-Identifier: BSD-3-Clause
"""nn.MultiheadAttention, which reads the weight of its output layer without calling the layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.prune.mask import mask_of

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
        attention: in evaluation mode; it is as it was afterwards.
        args: of the call.
        kwargs: of the call.

    Returns:
        [..., embed_dim], in the order of the attention's outputs.
    """
    with _identity(attention.out_proj):
        # Not a call: hooks on the attention are to see its own outputs alone.
        output: Tensor = attention.forward(*args, **kwargs)[0]
    return output


@contextlib.contextmanager
def _identity(layer: nn.Linear) -> Iterator[None]:
    """The layer passes on what it is given, under a live mask too."""
    weight, mask = layer.weight, mask_of(layer, "weight")
    if mask is not None:
        weight = layer.parametrizations.weight.original  # type: ignore[union-attr, assignment]
    changed = [weight] if layer.bias is None else [weight, layer.bias]
    saved = [parameter.data for parameter in changed]
    dropped = None if mask is None else mask.mask
    everything = torch.ones((), dtype=torch.bool, device=weight.device)
    try:
        weight.data = torch.eye(layer.out_features, dtype=weight.dtype, device=weight.device)
        for bias in changed[1:]:
            bias.data = torch.zeros_like(bias)
        if mask is not None:
            mask._buffers["mask"] = everything
        yield
    finally:
        for parameter, data in zip(changed, saved, strict=True):
            parameter.data = data
        if mask is not None:
            mask._buffers["mask"] = dropped


@contextlib.contextmanager
def without_fused_attention() -> Iterator[None]:
    """Attention and encoder layers of torch.nn call their parts one by one meanwhile."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
