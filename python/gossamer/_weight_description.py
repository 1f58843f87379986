# SPDX-License-Identifier: BSD-3-Clause
"""What a packed weight says of itself, and the dense values and mask that it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer import _ops
from gossamer._quantization import dequantized
from gossamer._weight_facts import Facts

__all__ = ["DescribedWeight", "shortened"]


class DescribedWeight(torch.Tensor):
    """The part of `SparseWeight` that is read only; the attributes are explained there."""

    packed: Tensor
    dense: Tensor | None
    scale: Tensor | None
    layout_code: int
    transposed: bool
    in_features: int
    out_features: int
    _facts: Facts

    @property
    def kernel_size(self) -> tuple[int, int] | None:
        """Height and width of a convolution's kernel; None for a matrix."""
        return self._facts.kernel

    @property
    def pattern(self) -> str:
        """The pattern it was packed with, e.g. `unstructured:0.9`."""
        return _ops.info(self.packed)["pattern"]

    @property
    def density(self) -> float:
        """Kept positions over all positions, padding of N:M and fan-in included."""
        kept = _ops.info(self.packed)["kept"]
        return kept / self.numel() if self.numel() else 0.0

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight in memory, scales included."""
        return self.packed.numel() + (0 if self.scale is None else 4 * self.scale.numel())

    @property
    def layout_name(self) -> str:
        """The layout it is held in, e.g. `kcsr128`, or a format's name; `first+second` of two."""
        return _ops.info(self.packed)["layout"]

    @property
    def quantization(self) -> str | None:
        """The word of `SparseConfig.quantize` for a quantized weight, else None."""
        if self.scale is None:
            return None
        if self._facts.dtype is torch.int8:
            return "int8"
        return "float8-accurate" if self._facts.accurate else "float8"

    @property
    def input_scale(self) -> float | None:
        """What inputs of an int8 weight are rounded at; None where each token gets its own."""
        return self._facts.input_scale or None

    @property
    def plan(self) -> list[str]:
        """The kernel chosen for each bucket of token counts; empty strings where none was.

        A convolution's tokens are the pixels of its result, of all images.
        """
        return [name or "" for name in _ops.info(self.packed)["plan"]]

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """The dense parameter again: its shape, zeros where nothing is kept.

        Of a quantized weight these are its 8-bit values times their scales, rounded to the dtype.

        Args:
            dtype: of the result; None keeps the weight's own.
        """
        values = self._logical_values()
        values = values.mT.contiguous() if self.transposed else values
        return values if dtype is None else values.to(dtype)

    def _logical_values(self) -> Tensor:
        """[[batch,] out, in] or a convolution's four dimensions, whatever the orientation."""
        values = torch.ops.gossamer.unpack(
            self.packed, self._facts.logical_shape, self._facts.dtype
        )
        return values if self.scale is None else dequantized(values, self.scale).to(self.dtype)

    def mask(self) -> Tensor:
        """Bool, shape of the dense parameter: True where a value is kept, zeros included."""
        mask = torch.ops.gossamer.unpack_mask(self.packed, self._facts.logical_shape)
        return mask.mT.contiguous() if self.transposed else mask

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """One line: shape, dtype, pattern, density, layout, size."""
        shape = f"{list(self.shape)}, {str(self.dtype).removeprefix('torch.')}"
        if type(self.packed) is not torch.Tensor:  # a compiler's fake has no bytes to read
            return f"SparseWeight({shape}, {self.packed})"
        info = _ops.info(self.packed)
        values = "" if self.scale is None else f"{info['dtype']} with a scale a row, "
        return (
            f"SparseWeight({shape}, {values}{shortened(info['pattern'])}, "
            f"{100 * self.density:.1f} % kept, "
            f"{info['layout']}, {self.packed_bytes / 1e6:.2f} MB)"
        )


def shortened(pattern: str) -> str:
    """A pattern's text with its sparsity rounded to four digits."""
    kind, separator, last = pattern.rpartition(":")
    return f"{kind}:{float(last):.4g}" if separator and "." in last else pattern
