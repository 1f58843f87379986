# SPDX-License-Identifier: BSD-3-Clause
"""Scales of activations for `Int8StaticActivationSparseWeightConfig`, found by running batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer._layers import find_layers
from gossamer.prune.batches import Forward, each_batch, run_batch
from gossamer.prune.capture import evaluating, watch_inputs

__all__ = ["calibrate_input_scales"]


def calibrate_input_scales(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward = run_batch
) -> dict[str, float]:
    """The scale that each linear layer's and convolution's inputs need: max |x| / 127.

    The model runs in evaluation mode without gradients; nothing of it changes. What a layer sees
    later and no batch held is cut off at 127 of its steps, so that batches should be many enough to
    hold the extremes.

    Args:
        model: any module, before or after `sparsify_`.
        batches: what the model is called with: a tensor, a tuple of positional arguments or a dict
            of keyword arguments each.
        forward: called with the model and a batch, where that is not the way to call it.

    Returns:
        A scale for the name of each layer that was called and whose inputs were not all zero.

    Raises:
        TypeError: `batches` is a single batch, or the model does not take one.
        ValueError: there are no batches, or a layer's input holds NaN or infinity (its name is in
            the message).
    """
    layers = {layer.name: layer.module for layer in find_layers(model) if layer.linear}
    largest: dict[str, float] = {}

    def record(name: str, x: Tensor) -> None:
        most = float(x.detach().abs().amax()) if x.numel() else 0.0
        if not most < float("inf"):
            raise ValueError(
                f"the input of '{name or 'the model'}' holds NaN or infinity; look for what put it "
                "there, or leave that batch out"
            )
        largest[name] = max(most, largest.get(name, 0.0))

    count = 0
    with evaluating(model), watch_inputs(None, layers, record):
        for batch in each_batch("calibrate_input_scales", batches):
            forward(model, batch)
            count += 1
    if count == 0:
        raise ValueError(
            "there are no batches; pass at least one, for instance a list of 8 tensors of 64 "
            "samples"
        )
    least = 127 * torch.finfo(torch.float32).tiny
    return {name: most / 127 for name, most in largest.items() if most >= least}
