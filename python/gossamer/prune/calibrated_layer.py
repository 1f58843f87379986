# SPDX-License-Identifier: BSD-3-Clause
"""One layer of a calibration: where its weight and mask are, and sums over the inputs it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.prune.layer import LayerForm
from gossamer.prune.mask import Mask
from gossamer.prune.problem import LayerProblem

__all__ = ["CalibratedLayer", "Sums", "add_products"]


@dataclass
class CalibratedLayer:
    """A layer under a live mask.

    Attributes:
        fqn: the weight's full name.
        module: the layer.
        weight: the dense parameter under the mask.
        mask: the live mask.
        form: how it is a matrix product.
        problem: makes its problem from the weight [groups, out, in] and the Gram matrix.
        solve: what runs the parts.
    """

    fqn: str
    module: nn.Module
    weight: Tensor
    mask: Mask
    form: LayerForm
    problem: Callable[[Tensor, Tensor], LayerProblem]
    solve: Callable[[LayerProblem], None]


@dataclass
class Sums:
    """Gram matrices of a group's inputs, summed over tokens: [groups, in, in], float64."""

    gram: Tensor
    cross: Tensor | None
    dense_gram: Tensor | None
    tokens: int = 0


def add_products(gram: Tensor, layer: CalibratedLayer, x: Tensor, y: Tensor) -> None:
    """Adds xᵀ·y for each group of a convolution."""
    if x.device != gram.device:
        raise ValueError(
            f"'{layer.fqn}': its inputs are on {x.device}, its weight was on {gram.device} when "
            "calibration began; leave the model where it is until it ends"
        )
    for group in range(len(gram)):
        torch.ops.gossamer.gram_(gram[group], x[group].float(), y[group].float())
