# SPDX-License-Identifier: BSD-3-Clause
"""How a weight of any rank is the matrix that a pattern speaks of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

__all__ = ["MatrixForm", "is_conv1d"]


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the `Conv1D` of Hugging Face's GPT-2, x·W with W [in, out]; masked or not."""
    kind = parametrize.type_before_parametrizations(module)
    return kind.__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


@dataclass(frozen=True)
class MatrixForm:
    """How a parameter is read as [batch,] out, in.

    A convolution weight [OC, IC, …taps] is the matrix [OC, taps·IC], channels last. Patterns that
    group inputs (`N:M`, `vnm`) see it as [taps, OC, IC], one matrix a tap, so that no group crosses
    from one tap into the next. Other weights of three dimensions are stacked matrices.

    Attributes:
        convolution: whether dimensions after the second are taps.
        transposed: whether the parameter holds inputs before outputs (transposed convolutions, and
            the `Conv1D` of Hugging Face's GPT-2).
    """

    convolution: bool
    transposed: bool

    @classmethod
    def of(cls, module: nn.Module, weight: Tensor) -> MatrixForm:
        """The form of a module's parameter; four dimensions and more are one of a convolution."""
        return cls(
            convolution=weight.dim() > (2 if isinstance(module, _ConvNd) else 3),
            transposed=isinstance(module, _ConvTransposeNd) or is_conv1d(module),
        )

    def to_matrix(self, tensor: Tensor, *, grouped: bool) -> Tensor:
        """A tensor of the parameter's shape as [batch,] out, in, contiguous.

        Args:
            tensor: of the parameter's shape.
            grouped: whether the pattern groups neighbouring inputs.
        """
        if self.transposed:
            tensor = tensor.transpose(0, 1)
        if self.convolution and grouped:
            tensor = tensor.flatten(2).movedim(2, 0)
        elif self.convolution:
            tensor = tensor.movedim(1, -1).flatten(1)
        return tensor.contiguous()

    def from_matrix(self, matrix: Tensor, shape: torch.Size, *, grouped: bool) -> Tensor:
        """The inverse of `to_matrix`: a matrix in the parameter's shape."""
        if self.transposed:
            shape = torch.Size((shape[1], shape[0], *shape[2:]))
        if self.convolution and grouped:
            matrix = matrix.movedim(0, 2).reshape(shape)
        elif self.convolution:
            matrix = matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return matrix.transpose(0, 1) if self.transposed else matrix
