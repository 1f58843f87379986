# SPDX-License-Identifier: BSD-3-Clause
"""Layers that run what follows them: `act(layer(x) + residual)`, packed in one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer import weight
from gossamer._activation import apply_activation
from gossamer._convolution import Convolution
from gossamer._weight_convolution import convolution
from gossamer._weight_products import ACTIVATIONS, product

SparseWeight = weight.SparseWeight

__all__ = ["FUSED", "FusedConv2d", "FusedLinear", "fuse_layer"]


class _Fused:
    """What both kinds share; `gossamer_epilogue` is a key of `ACTIVATIONS`."""

    gossamer_epilogue: str | None
    gossamer_adds_in_place: bool
    gossamer_takes_rows: bool

    def _after(self, y: Tensor, residual: Any) -> Tensor:
        """The same with torch's operators, for a plain weight or a residual of another shape."""
        if residual is not None:
            # y += r keeps the dtype and the shape of y, which nobody else sees; y + r may not.
            y = y.add_(residual) if self.gossamer_adds_in_place else y + residual
        return apply_activation(y, ACTIVATIONS[self.gossamer_epilogue])


class FusedLinear(_Fused, nn.Linear):
    """An `nn.Linear` with the activation, and the residual of the call, that followed it."""

    def forward(self, input: Tensor, residual: Any = None) -> Tensor:
        """Computes act(input·Wᵀ + bias + residual).

        Args:
            input: [..., in].
            residual: what is added before the activation, broadcast as by `+`; None adds nothing.

        Returns:
            [..., out], or the shape that broadcasting gives.

        Raises:
            ValueError: a BatchNorm1d was folded into the layer and `input` is not [tokens, in].
        """
        if self.gossamer_takes_rows and input.dim() != 2:
            raise ValueError(
                f"input has shape {list(input.shape)}: a BatchNorm1d was folded into this layer, "
                "which is the same for inputs of two dimensions only; flatten the input, or use "
                "the model as it was before gossamer.fuse_"
            )
        values = self.weight
        if isinstance(values, SparseWeight) and not values.transposed:
            shape = (*input.shape[:-1], values.out_features)
            if _fits(residual, shape, input):
                code = int(ACTIVATIONS[self.gossamer_epilogue])
                return product(input, values, self.bias, code, residual)
        return self._after(nn.functional.linear(input, values, self.bias), residual)


class FusedConv2d(_Fused, nn.Conv2d):
    """An `nn.Conv2d` with the activation, and the residual of the call, that followed it."""

    def forward(self, input: Tensor, residual: Any = None) -> Tensor:
        """Computes act(conv2d(input) + residual).

        Args:
            input: [[images,] channels, height, width].
            residual: what is added before the activation, broadcast as by `+`; None adds nothing.

        Returns:
            [[images,] out, height, width], or the shape that broadcasting gives.
        """
        values = self.weight
        if isinstance(values, SparseWeight) and (
            residual is None or _fits(residual, self._shape(input), input)
        ):
            numbers = Convolution.of(self)
            return convolution(
                input,
                values,
                self.bias,
                numbers.stride,
                numbers.padding,
                numbers.dilation,
                self.groups,
                int(ACTIVATIONS[self.gossamer_epilogue]),
                residual,
            )
        return self._after(self._conv_forward(input, values, self.bias), residual)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        numbers = Convolution.of(self)
        pads = numbers.padding
        if len(pads) == 2:
            pads = (pads[0], pads[0], pads[1], pads[1])
        sides = [
            (x.shape[axis - 2] + pads[2 * axis] + pads[2 * axis + 1] - reach - 1)
            // numbers.stride[axis]
            + 1
            for axis, reach in enumerate(
                d * (k - 1) for d, k in zip(numbers.dilation, self.kernel_size, strict=True)
            )
        ]
        return (*x.shape[:-3], self.out_channels, *sides)


FUSED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FusedLinear, nn.Conv2d: FusedConv2d}
"""Which class a layer gets; subclasses of these have a forward of their own and get none."""


def _fits(residual: Any, shape: tuple[int, ...], x: Tensor) -> bool:
    """Whether the operator takes the residual as it is: no broadcasting, no promotion."""
    if residual is None:
        return True
    return (
        isinstance(residual, Tensor)
        and type(residual) is not SparseWeight
        and residual.shape == torch.Size(shape)
        and residual.dtype == x.dtype
        and residual.device == x.device
    )


def fuse_layer(
    module: nn.Module, activation: str | None, adds_in_place: bool, takes_rows: bool = False
) -> None:
    """Makes an `nn.Linear` or `nn.Conv2d` its fused kind, with the same parameters and names."""
    module.__class__ = FUSED[type(module)]
    module.gossamer_epilogue = activation  # type: ignore[assignment]
    module.gossamer_adds_in_place = adds_in_place  # type: ignore[assignment]
    module.gossamer_takes_rows = takes_rows  # type: ignore[assignment]
