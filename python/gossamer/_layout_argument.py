# SPDX-License-Identifier: BSD-3-Clause
"""Bits of the argument `layout` that say more than the layout (src/torch/cuda_layout_argument.h).

On a CPU the argument is the layout alone; on a GPU, whose operator reads no header, it carries what
a call has to know. `_weight_facts` puts most of it together.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESULT_BIT = 6
"""Where the two bits for the result's dtype begin."""
FLOAT8_BIT = 23
"""The values of a quantized weight are float8."""
ACCURATE_BIT = 24
"""The sums of float8 products are to be accurate."""

_RESULT_DTYPES = (None, torch.bfloat16, torch.float16, torch.float32)


def with_result_dtype(layout: int, x: Tensor, dtype: torch.dtype) -> int:
    """The argument `layout` of a product on a GPU whose result has another dtype than x.

    Raises:
        ValueError: no kernel writes that dtype.
    """
    if dtype == x.dtype:
        return layout
    if x.device.type != "cuda":
        raise ValueError(
            f"output_dtype {dtype} of x {x.dtype} on {x.device.type}: kernels outside of a GPU "
            f"write x's dtype; convert x or the result with .to({dtype})"
        )
    if dtype not in _RESULT_DTYPES:
        raise ValueError(
            f"output_dtype {dtype}: torch.bfloat16, torch.float16 and torch.float32 are accepted"
        )
    return layout | _RESULT_DTYPES.index(dtype) << RESULT_BIT


def result_dtype(layout: int, x: Tensor) -> torch.dtype:
    """The dtype of a product of x: what the argument `layout` asks for, else x's."""
    return _RESULT_DTYPES[layout >> RESULT_BIT & 3] or x.dtype
