# SPDX-License-Identifier: BSD-3-Clause
"""One layer of a calibration: where its weight and mask are, and sums over the inputs it sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.prune.correction import Fold, joined
from gossamer.prune.layer import LayerForm
from gossamer.prune.mask import Mask
from gossamer.prune.problem import LayerProblem
from gossamer.prune.ranks import Ranks

__all__ = ["CalibratedLayer", "Norms", "Sums", "add_products"]

SAMPLED_ROWS = 768
"""At most so many rows of a wide layer's inputs are kept for its error where there is no Gram."""


@dataclass
class CalibratedLayer:
    """A layer under a live mask.

    Attributes:
        fqn: the weight's full name.
        module: the layer.
        weight: the dense parameter under the mask.
        mask: the live mask.
        form: how it is a matrix product.
        problem: makes its problem from the weight [groups, out, in] and the Gram matrix, if any.
        solve: what runs the parts.
    """

    fqn: str
    module: nn.Module
    weight: Tensor
    mask: Mask
    form: LayerForm
    problem: Callable[[Tensor, Tensor | None], LayerProblem]
    solve: Callable[[LayerProblem], None]


@dataclass
class Sums:
    """What a group's inputs add up to: [groups, in, in], float64, sums over tokens.

    Attributes:
        folds: XᵀX and X₀ᵀX, in several parts where something is judged on one of them.
        dense_gram: X₀ᵀX₀, where the dense model's outputs are the target.
    """

    folds: list[Fold]
    dense_gram: Tensor | None

    @classmethod
    def zeros(cls, layer: CalibratedLayer, size: int, *, corrects: bool, folds: int) -> Sums:
        """Nothing yet.

        Args:
            layer: of the group.
            size: inputs of a row.
            corrects: whether there are inputs of the dense model too.
            folds: into how many parts batches are put, one after the other.
        """

        def matrix() -> Tensor:
            shape = (layer.form.groups, size, size)
            return torch.zeros(shape, dtype=torch.float64, device=layer.weight.device)

        made = [Fold(matrix(), matrix() if corrects else None) for _ in range(folds)]
        return cls(made, matrix() if corrects else None)

    def add(self, layer: CalibratedLayer, x: Tensor, x0: Tensor | None, index: int) -> None:
        """Adds rows of inputs [groups, tokens, in] of batch `index`, and the dense model's."""
        fold = self.folds[index % len(self.folds)]
        add_products(fold.gram, layer, x, x)
        if x0 is not None and fold.cross is not None and self.dense_gram is not None:
            add_products(fold.cross, layer, x0, x)
            add_products(self.dense_gram, layer, x0, x0)
        fold.tokens += x.shape[1]

    def over(self, ranks: Ranks) -> None:
        """Makes them the sums over all ranks."""
        for fold in self.folds:
            ranks.add_(fold.gram, *([] if fold.cross is None else [fold.cross]))
            fold.tokens = sum(ranks.each(fold.tokens))
        ranks.add_(*([] if self.dense_gram is None else [self.dense_gram]))

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(fold.tokens for fold in self.folds)

    def total(self) -> Fold:
        """The sums over all folds."""
        return joined(self.folds)

    @property
    def energies(self) -> Tensor:
        """‖X_j‖² of each input, [groups, in], float64."""
        diagonals = [fold.gram.diagonal(dim1=-2, dim2=-1) for fold in self.folds]
        return torch.stack(diagonals).sum(dim=0)


@dataclass
class Norms:
    """What is gathered of a wide layer's inputs where nothing asks for a Gram matrix.

    A Gram matrix of n inputs, and an error by it, take n times as long as the norms. So the error
    is that of some rows, which are kept until the mask is known.

    Attributes:
        energies: ‖X_j‖² of each input, [groups, in], float64, a sum over tokens.
        sample: the rows that are kept, [groups, rows, in], float32: every `stride`-th.
        stride: a power of three, which meets all positions of sequences and images, whose lengths
            are more often even.
        tokens: rows so far.
    """

    energies: Tensor
    sample: Tensor
    stride: int = 1
    tokens: int = 0

    @classmethod
    def zeros(cls, layer: CalibratedLayer, size: int) -> Norms:
        """Nothing yet, for a group with so many inputs."""
        groups, device = layer.form.groups, layer.weight.device
        return cls(
            torch.zeros((groups, size), dtype=torch.float64, device=device),
            torch.zeros((groups, 0, size), device=device),
        )

    def add(self, layer: CalibratedLayer, x: Tensor) -> None:
        """Adds rows of inputs [groups, tokens, in]."""
        _check_device(layer, x, self.energies)
        self.energies += x.double().square().sum(dim=1)
        while math.ceil((self.tokens + x.shape[1]) / self.stride) > SAMPLED_ROWS:
            self.sample, self.stride = self.sample[:, ::3], 3 * self.stride
        fresh = x[:, -self.tokens % self.stride :: self.stride]
        self.sample = torch.cat([self.sample, fresh.float()], dim=1)
        self.tokens += x.shape[1]

    def over(self, ranks: Ranks) -> None:
        """Makes them the sums over all ranks; the rows stay those that rank 0 has kept."""
        ranks.add_(self.energies)
        self.tokens = sum(ranks.each(self.tokens))
        if ranks.count > 1:
            self.sample = ranks.first(self.sample.cpu()).to(self.sample.device)


def add_products(gram: Tensor, layer: CalibratedLayer, x: Tensor, y: Tensor) -> None:
    """Adds xᵀ·y for each group of a convolution."""
    _check_device(layer, x, gram)
    for group in range(len(gram)):
        torch.ops.gossamer.gram_(gram[group], x[group].float(), y[group].float())


def _check_device(layer: CalibratedLayer, x: Tensor, sums: Tensor) -> None:
    if x.device != sums.device:
        raise ValueError(
            f"'{layer.fqn}': its inputs are on {x.device}, its weight was on {sums.device} when "
            "calibration began; leave the model where it is until it ends"
        )
