# SPDX-License-Identifier: BSD-3-Clause
"""What a packed weight is beside its bytes: enough to rebuild the tensor around other bytes."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer import _layout_argument, _ops

LEAST_ZEROS = 0.25
"""A weight with a smaller fraction of zeros counts as dense: a few that nobody put there are not
worth packing and timing. A pattern that is asked for decides alone."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int8,
    )
}


def count_nonzeros(values: torch.Tensor) -> int:
    """A part at a time: torch counts in eight bytes an element, which a full GPU does not have."""
    with torch.no_grad():
        parts = values.detach().reshape(-1).split(1 << 20)
        return sum(int(torch.count_nonzero(part)) for part in parts)


class Facts(NamedTuple):
    """What does not change with the bytes."""

    batch: int
    out: int
    inputs: int
    dtype: torch.dtype
    layout_code: int
    transposed: bool
    kernel: tuple[int, int] | None = None
    dense_buckets: int = 0
    """A bit for each bucket of token counts (gossamer/linear.h) that the plan runs dense. A GPU's
    operator cannot read the header; on a CPU it saves a call."""
    quantized: torch.dtype | None = None
    """The floating dtype that 8-bit values and their scales stand for; None where the values are
    the weight itself."""
    accurate: bool = False
    """Sums of float8 products are added up in float32 every 256 inputs, not left to the tensor
    core's 14 bits."""
    plan: int = 0
    """Bits of a GPU's `layout_argument` (`_layout_argument.plan_bits`); 0 where the header's
    buckets say all there is. They live as long as the weight: a file has none, and what it becomes
    is planned anew or left to the cost model."""
    input_scale: float = 0.0
    """What inputs of a quantized weight are rounded at, as calibration found it; 0 where each token
    (image) gets a scale of its own in every call."""

    def layout_argument(self, device: torch.device) -> int:
        """What the operators are told of the bytes beside the inputs and outputs of a call.

        On a CPU the layout; on a GPU, whose operator does not read the header, the plan, the
        inputs and the kind of values too (`_layout_argument`).
        """
        if device.type != "cuda":
            return self.layout_code
        is_quantized = self.quantized is not None
        return (
            self.layout_code
            | (self.plan or _layout_argument.plan_of_buckets(self.dense_buckets))
            | (self.inputs > 0) << _layout_argument.TOLD_SHIFT
            | self.inputs % _layout_argument.INPUTS << _layout_argument.INPUTS_SHIFT
            | _layout_argument.dtype_bits(
                self.dtype, quantized=is_quantized, accurate=self.accurate
            )
            | (self.batch > 1) << _layout_argument.STACK_SHIFT
        )

    @property
    def apparent_dtype(self) -> torch.dtype:
        """The dtype of the dense parameter that the weight stands for."""
        return self.dtype if self.quantized is None else self.quantized

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """[out, in], [batch, out, in] or a convolution's [out, channels, height, width]."""
        if self.kernel is not None:
            return (self.out, self.inputs // (self.kernel[0] * self.kernel[1]), *self.kernel)
        shape = (self.out, self.inputs)
        return shape if self.batch == 1 else (self.batch, *shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense parameter's: [in, out] where it is transposed."""
        if self.kernel is not None:
            return self.logical_shape
        shape = (self.inputs, self.out) if self.transposed else (self.out, self.inputs)
        return shape if self.batch == 1 else (self.batch, *shape)


class QuickCall(NamedTuple):
    """What the shortest path of `F.linear` asks of a weight (`_weight_products.linear_as_torch`).

    In one place, and read as one: each attribute of a tensor's subclass costs a tenth of a
    microsecond, and several times that where the call before has emptied the caches.
    """

    dense_whole: int
    """By `(tokens - 1).bit_length()`: bits of the sizes whose counts all run dense."""
    dense_quarter: int
    """Bits of those where the first quarter does."""
    inputs: int
    dense: Tensor | None
    is_plain: bool
    """Whether `arguments` are those of `linear_plain`, else those of `linear`."""
    arguments: tuple[Any, ...]


def quick_call(
    facts: Facts, dense: Tensor | None, arguments: tuple[Tensor, int, int, Tensor | None]
) -> QuickCall | None:
    """None where a call takes the long way: something is transposed or has to be passed on.

    Args:
        facts: of the weight.
        dense: its copy for the token counts that run dense.
        arguments: of `linear`: the packed bytes, what the operator is told, outputs and scale.
    """
    if facts.transposed or facts.input_scale:
        return None
    whole = quarter = 0
    if dense is not None:
        is_matrix = facts.batch == 1 and facts.kernel is None and facts.inputs > 0
        if not is_matrix or os.environ.get("GOSSAMER_KERNEL"):
            return None
        whole, quarter = _layout_argument.dense_sizes(facts.plan, facts.dense_buckets)
    is_plain = arguments[3] is None
    return QuickCall(
        whole, quarter, facts.inputs, dense, is_plain, arguments[:3] if is_plain else arguments
    )


def facts_of(packed: Tensor) -> Facts:
    """What the header of `packed` (uint8 [bytes]) says; ValueError where it is not one."""
    info = _ops.info(packed)
    kernel = info.get("kernel")
    return Facts(
        info["batch"],
        info["out"],
        info["in"],
        DTYPES[info["dtype"]],
        info["layout_code"],
        info["transposed"],
        (kernel[0], kernel[1]) if kernel else None,
        _dense_buckets(info),
    )


def _dense_buckets(info: dict[str, Any]) -> int:
    return sum(1 << i for i, kernel in enumerate(info["plan"]) if kernel == "dense")
