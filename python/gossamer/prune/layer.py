# SPDX-License-Identifier: BSD-3-Clause
"""A linear layer or 2-D convolution as Y = X·Wᵀ: its weight as matrices, its inputs as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.prune.matrix import MatrixForm, is_conv1d

__all__ = ["LayerForm"]


@dataclass(frozen=True)
class LayerForm:
    """How a layer is one or several matrix products.

    A convolution is a linear layer over its patches, channels last, so that neighbouring inputs
    are neighbouring channels of one tap. One with groups is as many products side by side.

    Attributes:
        form: how the parameter is a matrix.
        shape: the parameter's shape.
        groups: how many matrices the weight is.
        segment: inputs that lie together in memory; patterns that group neighbouring inputs start
            anew after so many. The input channels of a convolution, else all inputs.
    """

    form: MatrixForm
    shape: torch.Size
    groups: int
    segment: int

    @classmethod
    def of(cls, module: nn.Module, weight: Tensor) -> LayerForm:
        """The form of a layer.

        Raises:
            ValueError: the inputs of such a module are no rows that its weight multiplies.
        """
        form = MatrixForm.of(module, weight)
        if isinstance(module, nn.Conv2d):
            return cls(form, weight.shape, module.groups, weight.shape[1])
        if isinstance(module, nn.Linear) or is_conv1d(module):
            return cls(form, weight.shape, 1, weight.shape[0 if form.transposed else 1])
        kind = parametrize.type_before_parametrizations(module).__name__
        raise ValueError(
            f"is the weight of a {kind}: calibration knows nn.Linear, nn.Conv2d and the Conv1D of "
            "GPT-2; leave it out of the config, or prune it with a method that needs no data "
            "(gossamer.Magnitude)"
        )

    def matrices(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as [groups, out, in], contiguous."""
        matrix = self.form.to_matrix(tensor, grouped=False)
        return matrix.view(self.groups, matrix.shape[0] // self.groups, matrix.shape[1])

    def parameter(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        return self.form.from_matrix(matrices.flatten(0, 1), self.shape, grouped=False)

    def rows(self, module: Any, x: Tensor) -> Tensor:
        """The inputs of one call as [groups, tokens, in], float32 (float64 stays).

        Args:
            module: the layer.
            x: what it was called with.
        """
        x = x.detach()
        x = x if x.dtype == torch.float64 else x.float()
        if not isinstance(module, nn.Conv2d):
            return x.reshape(1, -1, x.shape[-1])
        x = x if x.dim() == 4 else x[None]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        patches = F.unfold(x, module.kernel_size, module.dilation, 0, module.stride)
        taps = module.kernel_size[0] * module.kernel_size[1]
        patches = patches.view(len(x), self.groups, self.segment, taps, -1)
        return patches.permute(1, 0, 4, 3, 2).reshape(self.groups, -1, taps * self.segment)
